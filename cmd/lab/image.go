package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rundigitalplatform/rookery/test/image"
)

// imageCommand writes a container image from static programs, with no engine and no registry.
func imageCommand() *cobra.Command {
	var spec image.Spec
	var files map[string]string
	var applets string
	c := &cobra.Command{Use: "image FILE", Short: "Write a container image from static programs", Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		for target, source := range files {
			data, err := os.ReadFile(source)
			if err != nil {
				return err
			}
			spec.Files = append(spec.Files, image.File{Path: target, Mode: 0o755, Data: data})
		}
		if applets != "" {
			links, err := appletLinks(applets)
			if err != nil {
				return err
			}
			spec.Files = append(spec.Files, links...)
		}
		spec.Files = append(spec.Files, image.File{Path: "/tmp", Dir: true, Mode: 0o1777})
		f, err := os.Create(args[0])
		if err != nil {
			return err
		}
		return errors.Join(image.Write(f, spec), f.Close())
	}}
	c.Flags().StringArrayVar(&spec.Names, "name", nil, "a name of the image (repeatable)")
	c.Flags().StringArrayVar(&spec.Entrypoint, "entrypoint", nil, "a word of the entrypoint (repeatable)")
	c.Flags().StringToStringVar(&files, "file", nil, "TARGET=SOURCE, an executable file in the image (repeatable)")
	c.Flags().StringVar(&applets, "applets", "", "a busybox, here and in the image, whose applets become links")
	return c
}

// appletLinks asks busybox itself what it can do.
func appletLinks(busybox string) ([]image.File, error) {
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list applets of %s: %w", busybox, err)
	}
	var links []image.File
	for _, name := range strings.Fields(string(out)) {
		if name != path.Base(busybox) {
			links = append(links, image.File{Path: path.Join(path.Dir(busybox), name), Link: busybox})
		}
	}
	return links, nil
}
