package engine_test

import (
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/pembadb/pemba/engine/enginetest"
)

// TestScripts runs the scripts in testdata, the manual of the engine.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", enginetest.Run)
}
