// Package probe runs the startup, liveness and readiness probes of one container.
//
// A Set has one timer per probe and reports each change of its verdict; what
// follows from a verdict is for package node, which calls it, to decide.
package probe

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/probe"
	grpcprobe "k8s.io/kubernetes/pkg/probe/grpc"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
	tcpprobe "k8s.io/kubernetes/pkg/probe/tcp"
)

// Exec runs a command in the container and returns its exit code and output.
type Exec func(ctx context.Context, command []string) (code int, output []byte, err error)

// Prober does single probes. It may be used concurrently.
type Prober struct {
	http httpProber
	tcp  tcpprobe.Prober
	grpc grpcprobe.Prober
}

// NewProber returns a prober. Certificates of probed servers are not checked, and
// redirects to other hosts not followed, as in kubelet.
func NewProber() *Prober {
	return &Prober{
		http: newHTTPProber(),
		tcp:  tcpprobe.New(),
		grpc: grpcprobe.New(),
	}
}

// maxOutput is how much of a probe's output goes into an event.
const maxOutput = 1 << 10

// Once probes one time. An error or a failure has a message; a probe that could not be
// carried out counts as failed.
func (p *Prober) Once(ctx context.Context, c *v1.Container, podIP string, spec *v1.Probe, exec Exec) (ok bool, message string) {
	timeout := max(time.Duration(spec.TimeoutSeconds)*time.Second, time.Second)
	result, output, err := p.once(ctx, c, podIP, spec, exec, timeout)
	if err != nil {
		return false, err.Error()
	}
	if len(output) > maxOutput {
		output = output[:maxOutput]
	}
	return result == probe.Success || result == probe.Warning, output
}

func (p *Prober) once(ctx context.Context, c *v1.Container, podIP string, spec *v1.Probe, exec Exec, timeout time.Duration) (probe.Result, string, error) {
	switch {
	case spec.Exec != nil:
		return runExec(ctx, spec.Exec.Command, exec, timeout)
	case spec.HTTPGet != nil:
		req, err := httpprobe.NewRequestForHTTPGetAction(spec.HTTPGet, c, podIP, "probe")
		if err != nil {
			return probe.Unknown, "", fmt.Errorf("make request: %w", err)
		}
		return p.http.Probe(ctx, req, timeout)
	case spec.TCPSocket != nil:
		port, err := probe.ResolveContainerPort(spec.TCPSocket.Port, c)
		if err != nil {
			return probe.Unknown, "", fmt.Errorf("resolve port: %w", err)
		}
		host := spec.TCPSocket.Host
		if host == "" {
			host = podIP
		}
		return p.tcp.Probe(host, port, timeout)
	case spec.GRPC != nil:
		service := ""
		if spec.GRPC.Service != nil {
			service = *spec.GRPC.Service
		}
		return p.grpc.Probe(podIP, service, int(spec.GRPC.Port), timeout, grpcprobe.ProbeOptions{})
	}
	return probe.Unknown, "", fmt.Errorf("the probe names no exec, httpGet, tcpSocket or grpc")
}

func runExec(ctx context.Context, command []string, exec Exec, timeout time.Duration) (probe.Result, string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	code, output, err := exec(ctx, command)
	if ctx.Err() == context.DeadlineExceeded {
		return probe.Failure, fmt.Sprintf("command timed out: %q timed out after %s", command, timeout), nil
	}
	if err != nil {
		return probe.Unknown, "", err
	}
	output = bytes.TrimSpace(output)
	if code != 0 {
		return probe.Failure, string(output), nil
	}
	return probe.Success, string(output), nil
}

// HTTPGet does the httpGet of a lifecycle hook. It succeeds with any status below 400.
func (p *Prober) HTTPGet(ctx context.Context, c *v1.Container, podIP string, action *v1.HTTPGetAction) error {
	req, err := httpprobe.NewRequestForHTTPGetAction(action, c, podIP, "lifecycle")
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	timeout := time.Minute
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline)
	}
	result, output, err := p.http.Probe(ctx, req, timeout)
	if err != nil {
		return fmt.Errorf("get %s: %w", net.JoinHostPort(req.URL.Hostname(), strconv.Itoa(portOf(req.URL.Port()))), err)
	}
	if result != probe.Success && result != probe.Warning {
		return fmt.Errorf("get %s: %s", req.URL, output)
	}
	return nil
}

func portOf(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 80
	}
	return n
}
