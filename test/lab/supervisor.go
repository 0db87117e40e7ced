package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// request is one line to the supervisor; response is its answer.
type request struct {
	Verb string // pid, start, kill, crash, down
	Host string
	Args []string // of `rookery up`, for start
}

type response struct {
	PID   int // of the host's first process, as seen outside
	Error string
}

func (l *Lab) socket() string { return l.path("lab.sock") }

// ask sends one request to the supervisor and waits for its answer.
func (l *Lab) ask(ctx context.Context, req request) (response, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", l.socket())
	if err != nil {
		return response{}, fmt.Errorf("reach the lab at %s: %w; is it up?", l.Dir, err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return response{}, err
		}
	}
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return response{}, err
	}
	var resp response
	if err := json.NewDecoder(conn).Decode(&resp); err != nil {
		return response{}, fmt.Errorf("%s %s: the supervisor ended: %w", req.Verb, req.Host, err)
	}
	if resp.Error != "" {
		return resp, errors.New(resp.Error)
	}
	return resp, nil
}

// supervise starts the supervisor and waits until all hosts run.
func (l *Lab) supervise(ctx context.Context) error {
	log, err := os.Create(l.path("lab.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(l.Bin, "lab"), "supervise", "--dir", l.Dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start supervisor: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		if _, err := l.ask(ctx, request{Verb: "pid", Host: l.Hosts[0].Name}); err == nil {
			return nil
		}
		select {
		case err := <-ended:
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("the supervisor ended at once (%v): %s", err, text)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (l *Lab) endSupervisor(ctx context.Context) error {
	data, err := os.ReadFile(l.path("lab.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return fmt.Errorf("read lab.pid: %w", err)
	}
	// The pid may be somebody else's by now: only a process that answers as this lab's is asked to end.
	if _, err := l.ask(ctx, request{Verb: "down"}); err != nil {
		return nil
	}
	for deadline := time.Now().Add(15 * time.Second); alive(pid); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return nil
}

// supervisor owns the host processes.
type supervisor struct {
	lab *Lab
	log *slog.Logger

	mu    sync.Mutex
	hosts map[string]*hostProcess
}

// hostProcess is the first process of a host, which takes orders on its standard input.
type hostProcess struct {
	cmd    *exec.Cmd
	orders io.WriteCloser
	reply  *bufio.Reader
	done   chan struct{}
}

// Supervise runs the supervisor of the lab in dir until it is told to end. Used by cmd/lab.
func Supervise(ctx context.Context, dir string, log *slog.Logger) error {
	l, err := Open(dir)
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.path("lab.pid"), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return err
	}
	s := &supervisor{lab: l, log: log, hosts: map[string]*hostProcess{}}
	defer s.end()
	for _, h := range l.Hosts {
		if err := s.boot(h.Name); err != nil {
			return err
		}
	}
	ln, err := net.Listen("unix", l.socket())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { <-ctx.Done(); ln.Close() }()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		go func() {
			defer conn.Close()
			var req request
			if err := json.NewDecoder(conn).Decode(&req); err != nil {
				return
			}
			pid, err := s.handle(req)
			resp := response{PID: pid}
			if err != nil {
				resp.Error = fmt.Sprintf("%s %s: %v", req.Verb, req.Host, err)
			}
			if err := json.NewEncoder(conn).Encode(resp); err != nil {
				log.Error("answer", "verb", req.Verb, "err", err)
			}
			if req.Verb == "down" {
				cancel()
			}
		}()
	}
}

func (s *supervisor) handle(req request) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch req.Verb {
	case "down":
		return 0, nil
	case "crash":
		return 0, s.crash(req.Host)
	}
	h := s.hosts[req.Host]
	if h == nil || !alive(h.cmd.Process.Pid) {
		if req.Verb != "start" {
			return 0, errors.New("the host is down; start it first")
		}
		if err := s.boot(req.Host); err != nil {
			return 0, err
		}
		h = s.hosts[req.Host]
	}
	if req.Verb == "pid" {
		return h.cmd.Process.Pid, nil
	}
	return h.cmd.Process.Pid, h.order(req)
}

func (h *hostProcess) order(req request) error {
	if err := json.NewEncoder(h.orders).Encode(req); err != nil {
		return err
	}
	line, err := h.reply.ReadString('\n')
	if err != nil {
		return fmt.Errorf("the host ended: %w", err)
	}
	if text := strings.TrimSpace(line); text != "ok" {
		return errors.New(text)
	}
	return nil
}

// boot starts a host: its namespaces and its first process, which starts Podman.
func (s *supervisor) boot(name string) error {
	l := s.lab
	h, err := l.Host(name)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(l.path(name, "host.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("nsenter", "--net=/run/netns/"+l.netns(name), filepath.Join(l.Bin, "lab"), "host", "--dir", l.Dir, h.Name)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	cmd.Stderr = log
	orders, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	replies, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := startOnOwnThread(cmd); err != nil {
		return fmt.Errorf("boot %s: %w", name, err)
	}
	p := &hostProcess{cmd: cmd, orders: orders, reply: bufio.NewReader(replies), done: make(chan struct{})}
	line, err := p.reply.ReadString('\n')
	go func() {
		err := cmd.Wait()
		s.log.Info("host ended", "host", name, "err", err)
		close(p.done)
	}()
	if err != nil || strings.TrimSpace(line) != "ok" {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("boot %s: %s %s", name, line, text)
	}
	s.hosts[name] = p
	return nil
}

// startOnOwnThread starts cmd from a thread that lives as long as this process:
// Pdeathsig fires when the thread that started the child ends.
func startOnOwnThread(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		lockForever()
		started <- cmd.Start()
		select {}
	}()
	return <-started
}

// crash ends every process of a host at once: the kernel kills a process
// namespace whole when its first process dies.
func (s *supervisor) crash(name string) error {
	h := s.hosts[name]
	if h == nil {
		return errors.New("no such host")
	}
	delete(s.hosts, name)
	if err := h.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-h.done
	return nil
}

func (s *supervisor) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.hosts {
		if err := s.crash(name); err != nil {
			s.log.Error("end host", "host", name, "err", err)
		}
	}
}
