"""`headrace readiness`: the go/no-go list of a mesh, each line with its evidence."""
