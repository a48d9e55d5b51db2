//go:build race

package engine_test

// raceDetector says that the tests run under the race detector, where pools
// forget at random.
const raceDetector = true
