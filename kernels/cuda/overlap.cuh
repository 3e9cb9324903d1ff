// A decode step's kernels overlap (programmatic dependent launch): a kernel's blocks start while those of the kernel in
// front of it still run, and may read what no kernel of the step writes (weights, positions, keys of earlier steps).
// Whatever else they touch comes after `wait_for_kernels_before`, which every kernel calls, whatever it does then: that a
// kernel is done means that all before it are only because it has waited for them itself. A test in src/cuda/compile.rs
// looks for the call in each kernel.
#pragma once

// Lets the kernel behind this one start as soon as there is room for its blocks.
__device__ __forceinline__ void start_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until all kernels before this one are done and what they wrote is there.
__device__ __forceinline__ void wait_for_kernels_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
