package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rundigitalplatform/rookery/test/registry"
)

// registryCommand serves images of archives, from the memory of this process.
func registryCommand() *cobra.Command {
	var listen, cert, key, private string
	c := &cobra.Command{Use: "registry NAME:TAG=FILE ...", Short: "Serve image archives as a registry", Args: cobra.MinimumNArgs(1), RunE: func(c *cobra.Command, args []string) error {
		r := &registry.Registry{}
		for _, arg := range args {
			name, path, ok := strings.Cut(arg, "=")
			if !ok {
				return fmt.Errorf("%q is not NAME:TAG=FILE", arg)
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			_, err = r.Push(name, f)
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
		}
		if private != "" {
			prefix, login, _ := strings.Cut(private, "=")
			user, password, ok := strings.Cut(login, ":")
			if !ok {
				return fmt.Errorf("--private %q is not PREFIX=USER:PASSWORD", private)
			}
			r.Set(prefix, registry.Rule{User: user, Password: password})
		}
		server := &http.Server{Addr: listen, Handler: r}
		defer context.AfterFunc(c.Context(), func() { server.Close() })() // on a signal
		fmt.Println("listening on", listen)
		serve := server.ListenAndServe
		if cert != "" {
			serve = func() error { return server.ListenAndServeTLS(cert, key) }
		}
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}}
	c.Flags().StringVar(&listen, "listen", ":5000", "address to listen on")
	c.Flags().StringVar(&cert, "tls-cert", "", "serve TLS with this certificate")
	c.Flags().StringVar(&key, "tls-key", "", "and this key")
	c.Flags().StringVar(&private, "private", "", "PREFIX=USER:PASSWORD, who may read repositories of a prefix (default: everybody all)")
	return c
}
