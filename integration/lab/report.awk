# report.awk: makes `go test -v` output brief. One line for a package that
# passed, with the tests that it skipped; for one that failed, what is left
# without the tests that passed. Appends "stage passed failed skipped" to the
# file named by counts.
# -v stage=NAME -v counts=FILE -v verbose=0|1

function clear() {
	n = skips = 0
	test = skipped = ""
	split("", seen)
	split("", passes)
}

function show(    i) {
	for (i = 1; i <= n && !verbose; i++)
		if (!(owner[i] in passes))
			print block[i]
}

function finish(line) {
	print (skips ? line " (" skips " skipped:" skipped ")" : line)
	allskips += skips
	clear()
}

BEGIN { clear() }

# The line that ends a package: ok or FAIL, a tab, its path.
/^ok  *\t/ { passed++; finish($0); next }
/^FAIL *\t/ { failed++; show(); finish($0); next }
/^\? *\t.*\[no test files\]$/ { clear(); next }

verbose { print }

# Whose the following lines are, and how it ended.
/^=== (RUN|CONT|NAME) / { test = $3; next }
/^=== (PAUSE|ATTR) / || /^(PASS|FAIL)$/ { next }
/^ *--- PASS: / { passes[$3]; test = ""; next }
/^ *--- SKIP: / {
	skips++
	split($3, name, "/") # a test with hundreds of cases is named once
	if (!seen[name[1]]++)
		skipped = skipped " " name[1]
	passes[$3]
	test = ""
	next
}
{
	block[++n] = $0
	owner[n] = test
}
/^ *--- FAIL: / { test = owner[n] = "" }

END {
	show() # what comes after the last package: why a guest died, say
	print stage, passed + 0, failed + 0, allskips + 0 >> counts
}
