package lab

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// TailLogs writes the last lines of every log of the lab in dir to w, for those who read
// why a run of tests failed. Logs that cannot be read are named with the cause.
func TailLogs(w io.Writer, dir string) {
	const last = 60
	logs, err := filepath.Glob(filepath.Join(dir, "*", "*.log"))
	if err != nil {
		fmt.Fprintln(w, "--- logs of the lab:", err)
	}
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err != nil {
			fmt.Fprintln(w, "---", err)
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		fmt.Fprintf(w, "--- %s\n%s\n", path, strings.Join(lines[max(0, len(lines)-last):], "\n"))
	}
}
