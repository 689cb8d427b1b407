#!/bin/sh
# CHECK= for make C=1. sparse 0.6.4 knows neither of these, and misses mistakes without a
# word where it does not understand a static assert.
sparse -D__typeof_unqual__=__typeof__ '-D_Static_assert(...)=struct __sparse_sa' "$@" 2>&1 | sed 's/^/sparse: /' >&2
