package schema

// Nearest returns the candidate that name is probably a misspelling of, or ""
// when none is near enough.
func Nearest(name string, candidates []string) string { return suggest(name, candidates) }
