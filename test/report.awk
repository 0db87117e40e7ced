# Passes on what `go test` prints but for the log lines of Kubernetes' libraries, and
# repeats at the end what failed, so that the end of a long log says it: what a test said comes
# after the word that it failed, or with -v before.
/^[IWE][0-9][0-9][0-9][0-9] [0-9:.]+ / { next }
{ print; fflush() }
/^ *--- FAIL/ { for (i = said > 8 ? said - 8 : 0; i < said; i++) failed[n++] = before[i] }
/^ *--- FAIL|^panic:|^FAIL\t|WARNING: DATA RACE/ { failed[n++] = $0; left = 8; said = 0; next }
/^=== |^ok |^ *--- |^\?/ { left = said = 0 }
/^    / && !left { before[said++] = $0 }
left > 0 && /^    / { failed[n++] = $0; left-- }
END {
	if (n) print "\n================ FAILED, again ================"
	for (i = 0; i < n; i++) print failed[i]
}
