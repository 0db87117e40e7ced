// Package stream serves a kubelet's streaming endpoints: logs, exec, attach and
// port forwarding, over SPDY and WebSocket.
//
// It knows pods only through Pods, which answers from what runs on this peer, so
// that it works without quorum too. Who may do what is checked by the caller.
// Package node calls it.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Container is one that streams can be opened to.
type Container struct {
	ID      string
	Running bool
	TTY     bool // it was started with a terminal
	Stdin   bool
}

// Pods finds what runs here. Errors are *Error or mean that something failed inside.
type Pods interface {
	// Container returns a container of a pod; with an empty name the pod's first. previous
	// asks for the attempt before the present one.
	Container(namespace, pod, name string, previous bool) (Container, error)
	// Dial connects to a TCP port inside the pod's network.
	Dial(ctx context.Context, namespace, pod string, port int32) (net.Conn, error)
	// Has says whether the pod is on this peer.
	Has(namespace, pod string) bool
}

// Error is an answer for the user with its HTTP status.
type Error struct {
	Status  int
	Message string
}

func (e *Error) Error() string { return e.Message }

// Connections may idle for as long as kubelet lets them.
const idleTimeout = 4 * time.Hour

type server struct {
	pods    Pods
	runtime runtime.Runtime
	log     *slog.Logger
	mux     *http.ServeMux
}

// Handler serves /containerLogs/NS/POD/CONTAINER, /exec/…, /attach/… and
// /portForward/NS/POD.
func Handler(pods Pods, rt runtime.Runtime, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	s := &server{pods, rt, log, mux}
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.logs)
	for path, serve := range map[string]http.HandlerFunc{
		"/exec/{namespace}/{pod}/{container}":   s.exec,
		"/attach/{namespace}/{pod}/{container}": s.attach,
		"/portForward/{namespace}/{pod}":        s.portForward,
	} {
		mux.HandleFunc("GET "+path, serve)
		mux.HandleFunc("POST "+path, serve)
	}
	return mux
}

func (s *server) fail(w http.ResponseWriter, err error) {
	var answer *Error
	if errors.As(err, &answer) {
		http.Error(w, answer.Message, answer.Status)
		return
	}
	s.log.Warn("serve stream", "error", err)
	http.Error(w, err.Error(), http.StatusInternalServerError)
}

// target finds the running container that a request is for.
func (s *server) target(r *http.Request) (Container, error) {
	name := r.PathValue("container")
	c, err := s.pods.Container(r.PathValue("namespace"), r.PathValue("pod"), name, false)
	if err != nil {
		return Container{}, err
	}
	if !c.Running {
		return Container{}, &Error{http.StatusBadRequest, fmt.Sprintf("container %s of pod %s is not running", name, r.PathValue("pod"))}
	}
	return c, nil
}

func (s *server) exec(w http.ResponseWriter, r *http.Request) {
	c, err := s.target(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	opts, err := remotecommand.NewOptions(r)
	command := r.URL.Query()["command"]
	if err == nil && len(command) == 0 {
		err = errors.New("you must specify a command")
	}
	if err != nil {
		s.fail(w, &Error{http.StatusBadRequest, err.Error()})
		return
	}
	if s.translate(w, r, opts) {
		return
	}
	remotecommand.ServeExec(w, r, commands{s.runtime}, "", "", c.ID, command, opts,
		idleTimeout, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *server) attach(w http.ResponseWriter, r *http.Request) {
	c, err := s.target(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	opts, err := remotecommand.NewOptions(r)
	if err != nil {
		s.fail(w, &Error{http.StatusBadRequest, err.Error()})
		return
	}
	opts.TTY = c.TTY // the container has what it was started with, whatever is asked for
	if c.TTY {
		opts.Stderr = false
	}
	if s.translate(w, r, opts) {
		return
	}
	remotecommand.ServeAttach(w, r, commands{s.runtime}, "", "", c.ID, opts,
		idleTimeout, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

// commands adapts runtime.Runtime to the streaming library.
type commands struct{ runtime runtime.Runtime }

func (c commands) ExecInContainer(ctx context.Context, _, _, id string, command []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	code, err := c.runtime.Exec(ctx, id, runtime.ExecOptions{Command: command, Streams: streams(ctx, in, out, errOut, tty, resize)})
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

func (c commands) AttachContainer(ctx context.Context, _, _, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return c.runtime.Attach(ctx, id, streams(ctx, in, out, errOut, tty, resize))
}

// streams translates; a nil interface must stay one.
func streams(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) runtime.Streams {
	s := runtime.Streams{TTY: tty}
	if in != nil {
		s.Stdin = in
	}
	if out != nil {
		s.Stdout = out
	}
	if errOut != nil && !tty {
		s.Stderr = errOut
	}
	if tty && resize != nil {
		sizes := make(chan runtime.Size)
		go func() { // ends with the command: ctx is cancelled then
			defer close(sizes)
			for {
				select {
				case <-ctx.Done():
					return
				case size, ok := <-resize:
					if !ok {
						return
					}
					select {
					case sizes <- runtime.Size{Width: size.Width, Height: size.Height}:
					case <-ctx.Done():
						return
					}
				}
			}
		}()
		s.Resize = sizes
	}
	return s
}

func (s *server) portForward(w http.ResponseWriter, r *http.Request) {
	namespace, pod := r.PathValue("namespace"), r.PathValue("pod")
	if !s.pods.Has(namespace, pod) {
		s.fail(w, &Error{http.StatusNotFound, fmt.Sprintf("pod %s/%s is not on this peer", namespace, pod)})
		return
	}
	opts, err := portforward.NewV4Options(r)
	if err != nil {
		s.fail(w, &Error{http.StatusBadRequest, err.Error()})
		return
	}
	portforward.ServePortForward(w, r, forwarder{s.pods, namespace}, pod, "", opts,
		idleTimeout, remotecommand.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
}

type forwarder struct {
	pods      Pods
	namespace string
}

// PortForward copies both ways until the pod's side has ended and, for a client
// that still sends, until it stops too.
func (f forwarder) PortForward(ctx context.Context, pod, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	conn, err := f.pods.Dial(ctx, f.namespace, pod, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, stream)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			err = errors.Join(err, half.CloseWrite())
		}
		sent <- err
	}()
	_, err = io.Copy(stream, conn)
	stream.Close()
	<-sent // the pod is done; what its side still refused to take is no failure
	return err
}
