// Command bench measures Rookery's budgets (docs/design/budgets.md) on the real
// binary in the lab, and prints one line for each: name, value, unit, yardstick,
// budget, and whether it is met. It fails if one is not, once all are printed.
//
//	bench [-bin DIR] [-run GROUP]
//
// Machines are noisy: ratios are taken within one run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/rundigitalplatform/rookery/test/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// figure is one measured budget.
type figure struct {
	name      string
	value     float64
	unit      string
	yardstick string
	budget    float64
	atLeast   bool // the budget is a lower bound
}

func (f figure) verdict() string {
	if f.budget == 0 {
		return "-" // measured for the record
	}
	if (f.atLeast && f.value >= f.budget) || (!f.atLeast && f.value <= f.budget) {
		return "ok"
	}
	return "over"
}

// group is a set of figures that are measured together.
type group struct {
	name    string
	measure func(context.Context, *bench) ([]figure, error)
}

func groups() []group {
	return []group{
		{"start", measureStart},
		{"pods", measurePods},
		{"single", measureSingle},
		{"many", measureMany},
		{"memory", measureMemory},
		{"idle", measureIdle},
		{"crd", measureCRD},
		{"network-service", measureService},
		{"network-overlay", measureOverlay},
		{"network-dns", measureNames},
		{"network-rules", measureRules},
		{"api", measureAPI},
		{"failover", measureFailover},
	}
}

// bench is one run: a lab of three peers that the groups share.
type bench struct {
	bin string
	lab *lab.Lab
	say func(string)
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "api-client" {
		return apiClient(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == "crd-client" {
		return crdClient(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == "dns-client" {
		return dnsClient(ctx, args[1:])
	}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	bin := f.String("bin", "bin", "directory of the rookery and lab programs")
	pattern := f.String("run", ".", "measure the groups that match: start, pods, single, many, memory, idle, crd, network-service, network-overlay, network-dns, network-rules, api, failover")
	if err := f.Parse(args); err != nil {
		return err
	}
	wanted, err := regexp.Compile(*pattern)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	dir, err := os.MkdirTemp("", "rookery-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{bin: *bin, say: func(s string) { fmt.Fprintln(os.Stderr, "#", s) }}
	defer func() {
		if err := lab.Down(context.Background(), dir+"/lab"); err != nil {
			fmt.Fprintln(os.Stderr, "bench: end lab:", err)
		}
	}()
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	var all []figure
	for _, g := range groups() {
		if !wanted.MatchString(g.name) {
			continue
		}
		if b.lab == nil && g.name != "start" {
			if b.lab, err = lab.Up(ctx, lab.Options{Dir: dir + "/lab", Peers: 3, Bin: b.bin}, b.say); err != nil {
				return err
			}
			sample, err := filepath.Abs("configs/samples/hello.yaml")
			if err != nil {
				return err
			}
			if _, err := b.lab.Run(ctx, "h1", "rookery", "apply", "-f", sample); err != nil {
				return err
			}
		}
		figures, err := g.measure(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
		for _, f := range figures {
			fmt.Fprintf(w, "%s\t%.2f\t%s\t%s\t%s\t%s\n", f.name, f.value, f.unit, f.yardstick, f.bound(), f.verdict())
		}
		all = append(all, figures...)
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return missed(all)
}

// missed names the figures that are over their budgets; nil: none is.
func missed(all []figure) error {
	var over []string
	for _, f := range all {
		if f.verdict() == "over" {
			over = append(over, fmt.Sprintf("%s is %.2f %s, not %s", f.name, f.value, f.unit, f.bound()))
		}
	}
	if len(over) == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d figures are over budget: %s", len(over), len(all), strings.Join(over, "; "))
}

func (f figure) bound() string {
	switch {
	case f.budget == 0:
		return "-"
	case f.atLeast:
		return fmt.Sprintf(">= %.4g", f.budget)
	}
	return fmt.Sprintf("<= %.4g", f.budget)
}
