# Passes on what `go test` prints but for the log lines of Kubernetes' libraries, and
# repeats at the end what failed, so that the end of a long log says it.
/^[IWE][0-9][0-9][0-9][0-9] [0-9:.]+ / { next }
{ print; fflush() }
/^ *--- FAIL|^panic:|^FAIL\t|WARNING: DATA RACE/ { failed[n++] = $0; left = 8; next }
/^=== |^ok |^ *--- |^\?/ { left = 0 }
left > 0 && /^    / { failed[n++] = $0; left-- }
END {
	if (n) print "\n================ FAILED, again ================"
	for (i = 0; i < n; i++) print failed[i]
}
