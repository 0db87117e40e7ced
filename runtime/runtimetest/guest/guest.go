// Package guest is the program that the conformance suite runs in containers.
// Podman runs it as a binary (guestcmd), the in-memory runtime as a function,
// so that the suite can ask the same of both.
package guest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// Process is what the program sees of the world.
type Process struct {
	Args           []string // a verb of Run and its arguments
	Env            func(string) string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Stop           <-chan struct{} // closed by the stop signal
}

// Run does what Args say and returns the exit code. ctx ends when the process is killed.
//
//	run          prints "running"; prints "stopping" at the stop signal and exits with 0
//	ignore       prints "running", until killed
//	exit N       exits with N
//	lines N      prints N lines on each of stdout and stderr, then does as run
//	env NAME     prints NAME's value
//	cat          copies stdin to stdout
//	echo A...    prints its arguments
//	readfile F   prints a file
//	fill F N     writes a file of N MiB, then does as run
//	eat          takes memory until killed
//	burn N       takes N MiB of memory, prints "running", and computes until the stop signal
func Run(ctx context.Context, p Process) int {
	if len(p.Args) == 0 {
		p.Args = []string{"run"}
	}
	verb, args := p.Args[0], p.Args[1:]
	switch verb {
	case "run":
		fmt.Fprintln(p.Stdout, "running")
		return untilStopped(ctx, p)
	case "ignore":
		fmt.Fprintln(p.Stdout, "running")
		<-ctx.Done()
		return 137
	case "lines":
		n := number(args)
		for i := range n {
			fmt.Fprintf(p.Stdout, "out %d\n", i)
			fmt.Fprintf(p.Stderr, "err %d\n", i)
		}
		return untilStopped(ctx, p)
	case "exit":
		return number(args)
	case "env":
		fmt.Fprintln(p.Stdout, p.Env(args[0]))
		return 0
	case "echo":
		fmt.Fprintln(p.Stdout, strings.Join(args, " "))
		return 0
	case "cat":
		if _, err := io.Copy(p.Stdout, p.Stdin); err != nil {
			fmt.Fprintln(p.Stderr, err)
			return 1
		}
		return 0
	case "readfile":
		return readFile(p, args[0])
	case "fill":
		return fill(ctx, p, args[0], number(args[1:]))
	case "eat":
		return eat(ctx, p)
	case "burn":
		return burn(ctx, p, number(args))
	}
	fmt.Fprintf(p.Stderr, "guest: unknown verb %q\n", verb)
	return 2
}

func untilStopped(ctx context.Context, p Process) int {
	select {
	case <-p.Stop:
		fmt.Fprintln(p.Stdout, "stopping")
		return 0
	case <-ctx.Done():
		return 137
	}
}

func number(args []string) int {
	if len(args) == 0 {
		return 0
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return 2
	}
	return n
}

func readFile(p Process, name string) int {
	file, err := os.Open(name)
	if err != nil {
		fmt.Fprintln(p.Stderr, err)
		return 1
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fmt.Fprintln(p.Stdout, lines.Text())
	}
	return 0
}

func fill(ctx context.Context, p Process, name string, mebibytes int) int {
	data := make([]byte, mebibytes<<20)
	for i := range data {
		data[i] = byte(i)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		fmt.Fprintln(p.Stderr, err)
		return 1
	}
	fmt.Fprintln(p.Stdout, "running")
	return untilStopped(ctx, p)
}

func eat(ctx context.Context, p Process) int {
	var all [][]byte
	// Slowly, as a leak does: the engine has to be done with the start before.
	for ticker := time.NewTicker(20 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			return 137
		case <-p.Stop:
			return len(all) % 2
		case <-ticker.C:
			block := make([]byte, 1<<20)
			for i := 0; i < len(block); i += 4096 {
				block[i] = 1
			}
			all = append(all, block)
		}
	}
}

func burn(ctx context.Context, p Process, mebibytes int) int {
	block := make([]byte, mebibytes<<20)
	for i := 0; i < len(block); i += 4096 {
		block[i] = 1
	}
	fmt.Fprintln(p.Stdout, "running")
	for sum := byte(0); ; {
		select {
		case <-p.Stop:
			return 0
		case <-ctx.Done():
			return 137
		default:
			for i := 0; i < len(block); i += 4096 {
				sum += block[i]
				block[i] = sum
			}
		}
	}
}
