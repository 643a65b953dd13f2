package sim

func newFiles(w *world) workload { return newRegisters(w) }
