package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rundigitalplatform/rookery/cmd/rookery/admin"
)

func imageCommand() *cobra.Command {
	root := &cobra.Command{Use: "image", Short: "Container images on the peers"}
	var peer string
	load := &cobra.Command{Use: "load FILE", Short: "Load an image archive (docker save, podman save) on every peer", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			if err := looksLikeArchive(f); err != nil {
				return fmt.Errorf("%s %w; `podman save -o FILE IMAGE` makes one", args[0], err)
			}
			client, err := dial()
			if err != nil {
				return err
			}
			failed := 0
			err = client.LoadImage(c.Context(), f, peer, func(r admin.ImageResult) {
				if r.Error != "" {
					failed++
					fmt.Fprintf(c.OutOrStdout(), "%s: failed: %s\n", r.Peer, r.Error)
					return
				}
				fmt.Fprintf(c.OutOrStdout(), "%s: loaded %s\n", r.Peer, strings.Join(r.Names, ", "))
			})
			if err != nil {
				return fmt.Errorf("load %s: %w", args[0], err)
			}
			if failed > 0 {
				return errors.New("the image is not on every peer; cure what is said above and run this again")
			}
			return nil
		}}
	load.Flags().StringVar(&peer, "peer", "all", "load on this peer only")
	root.AddCommand(load)
	return root
}

// looksLikeArchive refuses a file that is neither a tar file nor compressed, so
// that a mistake is told in our words and not in those of four formats that were tried.
func looksLikeArchive(f *os.File) error {
	head := make([]byte, 262)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	head = head[:n]
	for _, magic := range []string{"\x1f\x8b", "\x28\xb5\x2f\xfd", "BZh", "\xfd7zXZ"} {
		if strings.HasPrefix(string(head), magic) {
			return nil
		}
	}
	if n == len(head) && n > 261 && string(head[257:262]) == "ustar" {
		return nil
	}
	return errors.New("is not an image archive")
}
