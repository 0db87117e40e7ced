// Package runtime is a pod on this machine: a small interface over what runs
// containers, in terms that the node agent needs and no more.
//
// There are two implementations: runtime/podman over the Podman API, and
// runtime/memory, which keeps everything in memory for tests and simulation.
// Both pass the suite in runtime/runtimetest.
//
// The package knows nothing of the Kubernetes API: package node translates a
// pod spec into these types. Packet handling is not here either: a sandbox has
// an empty network namespace (or the host's), and package network wires it.
package runtime

import (
	"context"
	"errors"
	"io"
	"time"
)

var (
	// ErrNotFound says that the sandbox, container or image does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists says that a sandbox or container of that name exists already.
	ErrExists = errors.New("already exists")
	// ErrInUse says that an image is not removed because a container is made from it.
	ErrInUse = errors.New("in use")
	// ErrNoHandler says that the engine knows no OCI runtime of that name.
	ErrNoHandler = errors.New("no such OCI runtime")
	// ErrUnavailable says that the container engine does not answer. Nothing is
	// known about the state of the call that failed.
	ErrUnavailable = errors.New("container engine is not available")
)

// Runtime runs sandboxes (pods) and the containers in them. All methods may be
// called concurrently, for different sandboxes in parallel. Every method
// returns within the deadline of ctx; what it began may go on after that.
// Errors wrap the sentinels above where they apply.
type Runtime interface {
	// Info tells what engine this is.
	Info(ctx context.Context) (Info, error)
	// Ping is nil if the engine answers what every other question needs of it; a container
	// that hangs does not hold it up. It costs next to nothing on both sides, so that it may
	// be asked every few seconds.
	Ping(ctx context.Context) error

	// RunSandbox creates a sandbox and starts its infra container, which holds
	// the namespaces. The containers of a sandbox can be created only after that.
	// On error nothing is left behind, as far as the engine still answers. ErrNoHandler
	// if it does not know spec.Handler.
	RunSandbox(ctx context.Context, spec SandboxSpec) (Sandbox, error)
	// StopSandbox kills what still runs in the sandbox, the infra container last. Idempotent.
	StopSandbox(ctx context.Context, id string) error
	// UpdateSandbox gives a running sandbox other resources, all of them; one that is 0 is
	// unbounded from then on. s is as RunSandbox, List or Inspect returned it. ErrNotFound
	// if it does not run.
	UpdateSandbox(ctx context.Context, s Sandbox, r Resources) error
	// RemoveSandbox removes the sandbox with all its containers, running or not. Idempotent.
	RemoveSandbox(ctx context.Context, id string) error

	// CreateContainer creates a container without starting it.
	CreateContainer(ctx context.Context, sandboxID string, spec ContainerSpec) (id string, err error)
	StartContainer(ctx context.Context, id string) error
	// StopContainer sends the stop signal and kills the container after grace. It
	// returns when the container is not running any more. Idempotent.
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	// UpdateContainer gives a running container other resources, all of them; one that
	// is 0 is unbounded from then on.
	UpdateContainer(ctx context.Context, id string, r Resources) error
	// RemoveContainer removes a container, killing it if it runs. Idempotent.
	RemoveContainer(ctx context.Context, id string) error

	// List returns the sandboxes that this runtime's owner created (see LabelOwner) and that
	// have all of these labels, nil: every one, with all their containers, in any order. One
	// that hangs may hold up a list that it belongs to, and no other.
	List(ctx context.Context, labels map[string]string) ([]Sandbox, error)
	// Inspect returns one sandbox with its containers.
	Inspect(ctx context.Context, id string) (Sandbox, error)
	// Events calls f, one call at a time, for each change of a sandbox or container
	// of this owner, until ctx ends (nil) or the stream breaks (the error). The caller
	// lists after it has subscribed: ready is called once when the stream is established.
	Events(ctx context.Context, ready func(), f func(Event)) error

	// Usage reads what the containers of a running sandbox have used so far, by
	// container id; those that do not run are left out. s is as RunSandbox, List or
	// Inspect returned it, completed by the containers made since. It costs so little
	// that all sandboxes may be asked every few seconds. ErrNotFound if s does not run.
	Usage(ctx context.Context, s Sandbox) (map[string]Usage, error)

	// User tells as whom a container's first process was started. ErrNotFound if it never was.
	User(ctx context.Context, containerID string) (User, error)

	// Disk measures what the containers of a sandbox, running or not, have written, by
	// container id. It looks at each file: ask seldom. s is as for Usage.
	Disk(ctx context.Context, s Sandbox) (map[string]DiskUsage, error)

	// Exec runs a command in a running container until it ends and returns its
	// exit code. A command that cannot be started is an error, not a code. When ctx
	// ends, the command is killed. Here and in Attach, Stdin may be read from once
	// more after the call has returned.
	Exec(ctx context.Context, containerID string, opts ExecOptions) (exitCode int, err error)
	// Attach connects streams to the container's main process until it ends or ctx does; neither is an error.
	// With ContainerSpec.StdinOnce the process's input ends with Stdin or ctx, whichever is first.
	// Without it the input goes on, for whoever attaches next, and Attach ends with Stdin. With
	// TTY neither is so.
	Attach(ctx context.Context, containerID string, streams Streams) error
	// Logs writes what the container printed. With Follow it goes on until the container ends or ctx does.
	Logs(ctx context.Context, containerID string, opts LogOptions, stdout, stderr io.Writer) error

	// Image returns a local image by any of its names. ErrNotFound if it is not here.
	Image(ctx context.Context, ref string) (Image, error)
	// Images returns all local images, without User and StopSignal.
	Images(ctx context.Context) ([]Image, error)
	// PullImage fetches an image from its registry, also if it is local already. auth nil: the
	// login that the engine itself has for the registry, if any. The error is the cause in
	// the registry's words and names the image.
	PullImage(ctx context.Context, ref string, auth *RegistryAuth) (Image, error)
	// RemoveImage removes an image with all its names. ErrInUse, and the image stays, if a
	// container is made from it, anyone's. Idempotent.
	RemoveImage(ctx context.Context, id string) error
	// MountImage makes the files of a local image readable on this machine, under the
	// path that it returns, as long as the sandbox exists. Idempotent; after the engine or the
	// machine was restarted it has to be called again. Nobody may write there.
	MountImage(ctx context.Context, sandboxID, ref string) (path string, err error)
	// LoadImage reads a docker or OCI archive and returns the names it had.
	LoadImage(ctx context.Context, archive io.Reader) ([]string, error)
}

// Info describes the engine.
type Info struct {
	Name       string // "podman"
	Version    string // "4.3.1"
	OCIRuntime string // "crun", "runc"
	CgroupV2   bool
	// StoreFree is the space left where images and containers are kept, in bytes; -1 if unknown.
	StoreFree int64
	// StoreDir is where that is on this machine; empty if it is nowhere.
	StoreDir string
}

// Damage is something in the engine's storage that was found broken.
type Damage struct {
	What string // "image localhost/web:1: its manifest is missing"
	Done string // what was done about it
	Cure string // what happens or has to be done now; empty with an Image
	// Image is the id of an image that was removed, and Names are those it had: whether it
	// comes back by itself the caller knows.
	Image string
	Names []string
}

// Labels that every sandbox and container carries, so that a restarted daemon
// finds its own. SandboxSpec.Labels and ContainerSpec.Labels come on top.
const (
	LabelOwner   = "io.rookery.owner"   // the owner given to the runtime's constructor
	LabelSandbox = "io.rookery.sandbox" // SandboxSpec.Name
)

// SandboxSpec is what a sandbox is made from.
type SandboxSpec struct {
	Name     string // unique on the machine, [a-zA-Z0-9_.-]
	Hostname string // empty with HostNetwork
	Labels   map[string]string
	// HostNetwork shares the machine's network namespace; otherwise the sandbox
	// gets an empty one, in which even the loopback device may be down.
	HostNetwork bool
	HostPID     bool
	HostIPC     bool
	// ShareProcesses makes the sandbox's containers see each other's processes.
	ShareProcesses bool
	Sysctls        map[string]string
	// IDs gives the sandbox a user namespace of its own; zero: it has the machine's.
	IDs          IDRange
	CgroupParent string // empty: the engine's default
	// Resources bound all of the sandbox's containers together, beside what bounds each
	// of them; CPUShares weigh it against the other sandboxes.
	Resources Resources
	// Handler is the OCI runtime that runs the containers; empty: the engine's default.
	Handler string
}

// IDRange are users and groups of the machine: 0 to Size-1 inside a sandbox are these
// outside, so that its root is nobody there.
type IDRange struct{ First, Size uint32 }

// Sandbox is the actual state of a sandbox.
type Sandbox struct {
	ID, Name   string
	Labels     map[string]string
	Created    time.Time
	Running    bool // the infra container runs
	PID        int  // of the infra container, whose /proc/PID/ns/net is the network; 0 if not running
	Containers []Container
}

// State is where a container is in its life.
type State string

const (
	Created State = "created"
	Running State = "running"
	Exited  State = "exited"
	Unknown State = "unknown"
)

// Container is the actual state of a container, the infra container excluded.
// Started and Finished may be cut to the second.
type Container struct {
	ID, Name       string // Name as in ContainerSpec
	Labels         map[string]string
	Image, ImageID string
	State          State
	PID            int
	Created        time.Time
	Started        time.Time // zero if never
	Finished       time.Time // zero if running or never started
	ExitCode       int
	OOMKilled      bool
	Error          string // why the engine could not start it
}

// User is a user of a container, by the numbers that it sees itself.
type User struct {
	UID, GID int64
	Groups   []int64 // beside GID, in any order
}

// Usage is what a running container has used.
type Usage struct {
	At     time.Time     // when it was read
	CPU    time.Duration // CPU time of its processes since it started, over all CPUs
	Memory int64         // working set in bytes: without the cache of files that can be dropped at once
	// Processes and threads that are there now; 0 if that cannot be told.
	Processes int64
}

// DiskUsage is what a container has written.
type DiskUsage struct {
	Layer Space // on top of its image; mounts do not count
	Logs  Space
}

// Space is what files take on a disk.
type Space struct{ Bytes, Inodes int64 }

// Add sums up.
func (s Space) Add(more Space) Space { return Space{s.Bytes + more.Bytes, s.Inodes + more.Inodes} }

// ContainerSpec is what a container is made from. Everything is resolved: no
// reference to another object remains.
type ContainerSpec struct {
	Name                  string // unique on the machine, e.g. <container>_<pod>_<namespace>_<uid>_<attempt>
	Image                 string // must be local
	Labels                map[string]string
	Command               []string // replaces the image's entrypoint; nil: the image's
	Args                  []string // replaces the image's cmd; nil: the image's, unless Command is set
	Env                   []EnvVar // on top of the image's
	WorkDir               string
	Mounts                []Mount
	Devices               []string // host device paths, made available at the same path
	Stdin, StdinOnce, TTY bool
	// ProcessesOf is the id of a container of the sandbox, whose processes this one
	// sees. Empty: as the sandbox says.
	ProcessesOf string

	Resources
	OOMScoreAdj *int

	// Security; nil means the image's or the engine's default.
	User              string // "uid[:gid]"; empty: the image's
	Groups            []int64
	ImageGroups       bool // beside Groups those that the image's /etc/group gives the user
	Privileged        bool
	ReadOnlyRootfs    bool
	NoNewPrivileges   bool
	ProcUnmasked      bool     // nothing of /proc is hidden or read-only
	CapAdd, CapDrop   []string // without CAP_; "ALL" is understood
	SeccompUnconfined bool
	SeccompProfile    string // path of a profile on the host
	AppArmor          string // profile that is loaded on the host, or "unconfined"; empty: the engine's own
	// SELinux are parts of the label ("user:", "role:", "type:" or "level:" and the value);
	// only where the host has SELinux.
	SELinux []string

	StopSignal  string // empty: the image's, or TERM
	LogMaxBytes int64  // rotation size; 0: the engine's default
}

// Resources bound what a container uses; 0 means no limit or the engine's default.
type Resources struct {
	CPUShares   uint64
	CPUQuota    int64  // microseconds of each CPUPeriod
	CPUPeriod   uint64 // microseconds; 100000 where CPUQuota is set
	MemoryLimit int64  // bytes
}

// EnvVar is one environment variable.
type EnvVar struct{ Name, Value string }

// Mount binds a host path into a container.
type Mount struct {
	Source, Target string // absolute paths; Source must exist
	ReadOnly       bool
	NoExec         bool   // programs in it cannot be run
	Propagation    string // "", "rslave", "rshared"
}

// EventType says what happened.
type EventType string

const (
	ContainerStarted EventType = "started"
	ContainerDied    EventType = "died"
	ContainerRemoved EventType = "removed"
	SandboxStarted   EventType = "sandbox started"
	SandboxEnded     EventType = "sandbox ended" // stopped, died or removed
)

// Event is a hint that a sandbox changed; the truth is in Inspect.
type Event struct {
	Type      EventType
	Sandbox   string // SandboxSpec.Name
	Container string // container id; empty for an event of the sandbox
}

// Streams are the ends of a container's or command's standard streams; a nil one is not connected.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer // with TTY all output comes on Stdout
	TTY            bool
	Resize         <-chan Size // closed or nil: no more
}

// Size is a terminal's, in characters.
type Size struct{ Width, Height uint16 }

// ExecOptions is a command with its streams.
type ExecOptions struct {
	Command []string
	Streams
}

// LogOptions selects from a container's output.
type LogOptions struct {
	Follow     bool
	Timestamps bool      // RFC3339Nano and a space before each line
	Since      time.Time // zero: from the beginning
	Tail       *int64    // last lines; nil: all
}

// Image is a local image.
type Image struct {
	ID         string   // sha256:…
	Names      []string // fully qualified, e.g. localhost/hello:1
	Digests    []string // repo digests
	Size       int64
	User       string // of its config
	StopSignal string
	// Labels and Containers are told by Images only. Containers is how many are made from
	// it, running or not, of all owners.
	Labels     map[string]string
	Containers int
}

// RegistryAuth is a login at an image registry.
type RegistryAuth struct{ Username, Password string }
