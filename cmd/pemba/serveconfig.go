package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// configBytesMax bounds a config file.
const configBytesMax = 1 << 20

// completeFlags sets the flags of serve that the command line does not, from the
// environment and then from the file that --config names.
func completeFlags(cmd *cobra.Command) error {
	flags := cmd.Flags()
	given := make(map[string]bool)
	flags.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		if given[f.Name] || f.Name == "help" {
			return
		}
		name := envName(f.Name)
		text, ok := os.LookupEnv(name)
		if !ok || text == "" {
			return
		}
		given[f.Name] = true
		values := []string{text}
		if f.Name == "key" {
			values = strings.Fields(text)
		}
		for _, v := range values {
			if err := flags.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, wrongValue(f, v, err)))
			}
		}
	})
	if err := errors.Join(errs...); err != nil {
		return err
	}
	file, err := flags.GetString("config")
	if err != nil || file == "" {
		return err
	}
	return completeFromFile(cmd, file, given)
}

// envName is the environment variable of a flag. The client's key is PEMBA_KEY,
// so the server's has another name.
func envName(flag string) string {
	if flag == "key" {
		return "PEMBA_SERVE_KEY"
	}
	return "PEMBA_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// wrongValue says what a flag allows that a variable or a file gives another value.
// It keeps keys out of the error.
func wrongValue(f *pflag.Flag, value string, err error) error {
	var invalid *pflag.InvalidValueError
	switch {
	case f.Name == "key":
		return errors.New("the keys cannot be read")
	case errors.As(err, &invalid):
		return fmt.Errorf("%q: %s", value, allowedValues(f))
	}
	return err
}

func completeFromFile(cmd *cobra.Command, name string, given map[string]bool) error {
	content, err := readInput(cmd, name, configBytesMax)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(content, &doc); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("--config %s: %w", name, err)
	}
	if len(doc.Content) == 0 {
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("--config %s:%d: it must hold flags and their values, as \"data-dir: /var/lib/pemba\"", name, root.Line)
	}
	flags := cmd.Flags()
	seen := make(map[string]bool)
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		at := func(format string, args ...any) error {
			return fmt.Errorf("--config %s:%d: %s", name, key.Line, fmt.Sprintf(format, args...))
		}
		flag := flags.Lookup(key.Value)
		if flag == nil || key.Value == "help" || key.Value == "config" {
			var there []string
			flags.VisitAll(func(f *pflag.Flag) {
				if f.Name != "help" && f.Name != "config" {
					there = append(there, f.Name)
				}
			})
			return at("%q is not a flag of serve%s", key.Value, didYouMean(key.Value, there))
		}
		if seen[key.Value] {
			return at("%q stands twice", key.Value)
		}
		seen[key.Value] = true
		var values []string
		switch {
		case value.Kind == yaml.ScalarNode && value.Tag != "!!null":
			values = []string{value.Value}
		case value.Kind == yaml.SequenceNode && key.Value == "key":
			for _, v := range value.Content {
				if v.Kind != yaml.ScalarNode || v.Tag == "!!null" {
					return at("%q must be a list of texts", key.Value)
				}
				values = append(values, v.Value)
			}
		default:
			return at("%q needs a value", key.Value)
		}
		if given[key.Value] {
			continue
		}
		for _, v := range values {
			if err := flags.Set(key.Value, v); err != nil {
				return at("%s: %v", key.Value, wrongValue(flag, v, err))
			}
		}
	}
	return nil
}
