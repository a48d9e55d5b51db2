// Command bench measures Pemba beside an empty gRPC echo: one driver, and
// workloads as data.
//
//	go run ./bench --quick
//	go run ./bench --run 'business/100k/check' --json figures.jsonl
//	go run ./bench --list
//	go run ./bench --cluster
//
// Absolute figures say more about the machine than about Pemba. What counts are
// ratios within one round: every workload runs in alternating rounds with the
// echo, which has the options, messages and codec of the real server, without its
// interceptors, and does nothing, so that the ratio says what Pemba adds to the
// call that carries it.
// Both run as child processes of the driver (this program, started again), one
// connection of loopback TCP away, so that their processor time and memory can
// be told apart from the driver's.
//
// The pieces: a model (models.go) makes data, and questions whose answers are
// known; a workload (workloads.go) says what is asked of which data, how often
// and by how many callers; the driver (driver.go) makes the calls and verifies
// the answers, and past.go makes what is pruned beside them; stats.go counts, and
// report.go tells. The two servers are in server.go.
//
// With --cluster it measures several nodes beside one, all of them processes on this
// machine: cluster.go starts them (peers.go is their side), clusterload.go has the
// workloads, failover.go kills leaders, catchup.go lets fresh nodes join, and
// clusterreport.go tells.
//
// Invariants:
//
//   - Every decision is compared with the right one, every lookup once with all
//     right results and then with their number, and of the writes the last of each
//     caller is asked for. A wrong answer ends the run.
//   - The same seed gives the same tuples and questions.
//   - The driver's memory does not grow with the number of calls, but for
//     questions that are to be asked once.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"
)

// A config says what to run.
type config struct {
	// run selects workloads by their names; quick takes only the quick ones, and vast
	// only those of data that are too large for a run of everything.
	run   *regexp.Regexp
	quick bool
	vast  bool
	list  bool
	// rounds is how many rounds each workload has, and seconds how long one
	// slice of a round is.
	rounds  int
	seconds float64
	seed    uint64
	// rate makes open loops of all checks, with so many calls in a second; 0
	// leaves them as they are.
	rate float64
	// json is the file for JSON lines, profile the directory for processor
	// profiles, and dir where data directories are made; empty for none, none
	// and the system's own.
	json, profile, dir string
	output             io.Writer

	// cluster measures several nodes instead. kills is how often a leader is killed,
	// and tuples how many a fresh node catches up with.
	cluster bool
	kills   int
	tuples  int
	// away is how long a killed leader is not started again.
	away time.Duration
	// The settings of cluster.Config that the nodes have: ElectionTimeout, CommitPause
	// and StateBytesPerSecond.
	election, commitPause time.Duration
	stateRate             int64
}

// settings tells what the nodes of a cluster are set to.
func (c *config) settings() string {
	bound := fmt.Sprintf("at %s MiB/s at most", number(float64(c.stateRate)/(1<<20)))
	if c.stateRate < 0 {
		bound = "without a bound"
	}
	return fmt.Sprintf("nodes: a follower waits %v to %v for its leader, who beats every %v to %v; the agreed end is told after %v to %v; a state is sent %s",
		c.election, 2*c.election, c.election/heartbeats, 2*c.election/heartbeats, c.commitPause, 2*c.commitPause, bound)
}

// heartbeats is how many heartbeats, at most, Raft's leader sends in an election
// timeout.
const heartbeats = 10

// length is how long one slice of a round is.
func (c *config) length() time.Duration { return time.Duration(c.seconds * float64(time.Second)) }

// The defaults of a full and of a quick run.
const (
	fullRounds, fullSeconds   = 5, 0.5
	quickRounds, quickSeconds = 3, 0.2
)

// parse reads the command line.
func parse(args []string, output io.Writer) (*config, error) {
	c := &config{output: output}
	var pattern string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(output)
	flags.StringVar(&pattern, "run", "", "run only workloads whose name matches this regular `expression`")
	flags.BoolVar(&c.quick, "quick", false, "run a selection that ends within a minute")
	flags.BoolVar(&c.vast, "vast", false, "run the workloads of ten million tuples and of a group of a million, and no others")
	flags.BoolVar(&c.list, "list", false, "list the names of the workloads, and run none")
	flags.IntVar(&c.rounds, "rounds", 0, fmt.Sprintf("how many `rounds` each workload has; 0 for %d, or %d of a quick run", fullRounds, quickRounds))
	flags.Float64Var(&c.seconds, "seconds", 0, fmt.Sprintf("how many `seconds` one server runs in a round; 0 for %g, or %g of a quick run", fullSeconds, quickSeconds))
	flags.Uint64Var(&c.seed, "seed", 1, "the `number` from which data and questions are made")
	flags.Float64Var(&c.rate, "rate", 0, "begin so many `calls` of each check workload in a second, whatever the answers take; 0 leaves them as they are")
	flags.StringVar(&c.json, "json", "", "also write one JSON object a measure into this `file`")
	flags.StringVar(&c.profile, "profile", "", "write a processor profile of the server during each check workload into this `directory`")
	flags.StringVar(&c.dir, "dir", "", "make the data directories in this `directory`, whose disk is measured; empty for the system's temporary one")
	flags.BoolVar(&c.cluster, "cluster", false, "measure several nodes on this machine beside one, instead of one beside an echo")
	flags.IntVar(&c.kills, "kills", 0, fmt.Sprintf("how many `times` the leader is killed, with --cluster; 0 for %d, or %d of a quick run", fullKills, quickKills))
	flags.DurationVar(&c.away, "away", 0, "how `long` a killed leader stays away once the others take writes again, with --cluster")
	flags.IntVar(&c.tuples, "tuples", 0, fmt.Sprintf("how many `tuples` a fresh node catches up with, with --cluster; 0 for %d, or %d of a quick run", fullTuples, quickTuples))
	flags.DurationVar(&c.election, "election-timeout", electionTimeout, "how long a node waits for its leader, with --cluster, at random up to twice as `long`")
	flags.DurationVar(&c.commitPause, "commit-pause", commitPause, "how `long` a leader waits until it tells by itself what is agreed, with --cluster")
	flags.Int64Var(&c.stateRate, "state-rate", stateBytesPerSecond, "how many `bytes` of a state are sent in a second, with --cluster; negative for no bound")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("no arguments are taken, and %q was given", flags.Arg(0))
	}
	var err error
	if c.run, err = regexp.Compile(pattern); err != nil {
		return nil, fmt.Errorf("--run: %w", err)
	}
	defaults := config{rounds: fullRounds, seconds: fullSeconds, kills: fullKills, tuples: fullTuples}
	if c.quick {
		defaults = config{rounds: quickRounds, seconds: quickSeconds, kills: quickKills, tuples: quickTuples}
	}
	c.rounds, c.seconds = cmp.Or(c.rounds, defaults.rounds), cmp.Or(c.seconds, defaults.seconds)
	c.kills, c.tuples = cmp.Or(c.kills, defaults.kills), cmp.Or(c.tuples, defaults.tuples)
	return c, c.Validate()
}

// Validate says what is wrong with the configuration.
func (c *config) Validate() error {
	switch {
	case c.rounds < 1 || c.rounds > 1000:
		return fmt.Errorf("--rounds %d: 1 to 1000 are allowed", c.rounds)
	case c.vast && (c.quick || c.cluster):
		return errors.New("--vast is a selection of its own: neither --quick nor --cluster is allowed beside it")
	case !(c.seconds >= 0.01 && c.seconds <= 600):
		return fmt.Errorf("--seconds %g: 0.01 to 600 are allowed", c.seconds)
	case !(c.rate == 0 || c.rate >= 1 && c.rate <= 1e6):
		return fmt.Errorf("--rate %g: 0 and 1 to 1,000,000 are allowed", c.rate)
	case c.kills < 1 || c.kills > 1000:
		return fmt.Errorf("--kills %d: 1 to 1000 are allowed", c.kills)
	case c.away < 0 || c.away > time.Hour:
		return fmt.Errorf("--away %v: 0 to 1h are allowed", c.away)
	case c.tuples < 1000 || c.tuples > 100_000_000:
		return fmt.Errorf("--tuples %d: 1000 to 100,000,000 are allowed", c.tuples)
	case c.election < 50*time.Millisecond || c.election > time.Minute:
		return fmt.Errorf("--election-timeout %v: 50ms to 1m are allowed", c.election)
	case c.commitPause < time.Millisecond || c.commitPause > time.Second:
		return fmt.Errorf("--commit-pause %v: 1ms to 1s are allowed", c.commitPause)
	case c.stateRate == 0:
		return errors.New("--state-rate 0: a positive number of bytes is allowed, or a negative one for no bound")
	}
	return nil
}

func main() {
	var err error
	if spec := os.Getenv(serveVariable); spec != "" {
		err = serve(spec, os.Stdin, os.Stdout)
	} else {
		err = drive(os.Args[1:], os.Stdout)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		// Nothing can be done about a standard error that does not take it.
		fmt.Fprintln(os.Stderr, "bench: "+err.Error())
		os.Exit(1)
	}
}

// drive executes one command line.
func drive(args []string, output io.Writer) error {
	c, err := parse(args, output)
	if err != nil {
		return err
	}
	if c.list && c.cluster {
		for _, part := range (&clusterRun{driver: &driver{config: c}}).chosen() {
			if _, err := fmt.Fprintln(output, part.name); err != nil {
				return err
			}
		}
		return nil
	}
	if c.list {
		for _, group := range plan(c) {
			for i := range group {
				if _, err := fmt.Fprintln(output, group[i].name()); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if c.profile != "" {
		if err := os.MkdirAll(c.profile, 0o755); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if c.cluster {
		return runClusters(ctx, c)
	}
	return run(ctx, c)
}
