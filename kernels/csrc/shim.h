// The C ABI between the Rust side of this crate and libtorch, for what tch lacks.
//
// Every function that can fail returns 0 on success and 1 on failure; the reason is then in
// baleen_last_error() until the next failure on the same thread. A tensor is a pointer to an
// at::Tensor on the heap, the same thing tch holds: pointers passed in stay the caller's, pointers
// handed out belong to the caller, null stands for an undefined tensor.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
namespace at { class Tensor; }
using baleen_tensor = at::Tensor;
extern "C" {
#else
typedef void baleen_tensor;
#endif

const char* baleen_last_error(void);

int baleen_grad_mode_is_enabled(void);

// Makes the gradient of a leaf undefined.
int baleen_clear_grad(const baleen_tensor* leaf);

// num_grads is 0 (ones, for scalar outputs) or num_outputs.
int baleen_backward(baleen_tensor* const* outputs, size_t num_outputs,
                    baleen_tensor* const* grads, size_t num_grads);

// Fills result[num_inputs]; null where an input is not reached.
int baleen_grad(baleen_tensor* const* outputs, size_t num_outputs,
                baleen_tensor* const* grads, size_t num_grads,
                baleen_tensor* const* inputs, size_t num_inputs,
                baleen_tensor** result);

// Runs a Rust closure: takes ownership of grads[num_grads] (null: no gradient), fills
// result[num_result] with owned tensors or null. On failure returns 1 and writes a
// zero-terminated reason into message[message_bytes].
typedef int (*baleen_backward_fn)(void* closure, baleen_tensor* const* grads, size_t num_grads,
                                  baleen_tensor** result, size_t num_result,
                                  char* message, size_t message_bytes);
typedef void (*baleen_drop_fn)(void* closure);

// Makes result[i] share the data of outputs[i] with a history: `call` computes the gradients of
// inputs from those of the outputs. Takes ownership of closure in every case and calls `drop` on
// it exactly once: after the backward pass that used it, or when the graph goes away.
int baleen_custom(baleen_tensor* const* outputs, size_t num_outputs,
                  baleen_tensor* const* inputs, size_t num_inputs,
                  void* closure, baleen_backward_fn call, baleen_drop_fn drop,
                  baleen_tensor** result);

int baleen_fused_adamw_(baleen_tensor* const* params, baleen_tensor* const* grads,
                        baleen_tensor* const* exp_avgs, baleen_tensor* const* exp_avg_sqs,
                        size_t num_params, int64_t step, double lr, double beta1, double beta2,
                        double weight_decay, double eps);

// L2 norm of each tensor, result[num_tensors].
int baleen_foreach_norm(baleen_tensor* const* tensors, size_t num_tensors, baleen_tensor** result);

// values[count], of the type of the CPU tensor `like`, on CUDA device `device`, by way of page-locked memory: the call
// does not wait for the device.
int baleen_upload(const void* values, int64_t count, const baleen_tensor* like, int device, baleen_tensor** result);

int baleen_foreach_scale_(baleen_tensor* const* tensors, size_t num_tensors, double factor);

// Bytes that the allocator of a GPU has taken from the device and that no tensor uses.
int baleen_gpu_kept_memory(int device, int64_t* kept);

// Most bytes that a GPU's caching allocator had handed out, and had taken from the device, at once since
// the last reset.
int baleen_gpu_peak_memory(int device, int64_t* allocated, int64_t* reserved);
int baleen_reset_gpu_peak_memory(int device);

// Records what all threads compute, from start to stop; one recording at a time in a process. stop writes
// it to `path` as a Chrome trace, or drops it where path is null. What can't be written is not told.
int baleen_profiler_start(int with_gpu);
int baleen_profiler_stop(const char* path);

// A named range on the timeline of the calling thread, null where nothing is recorded. It must end on the
// same thread, ranges inside it first.
void* baleen_range_begin(const char* name);
void baleen_range_end(void* range);

// Causal attention within each of several sequences, aligned at their ends, differentiable; a GPU in half precision
// only. q [Tq, heads, d], k and v [Tk, kv_heads, d]; cum_q and cum_k i32 [sequences + 1]: where each begins and ends.
int baleen_varlen_attention(const baleen_tensor* q, const baleen_tensor* k, const baleen_tensor* v,
                            const baleen_tensor* cum_q, const baleen_tensor* cum_k,
                            int64_t longest_q, int64_t longest_k, double scale,
                            baleen_tensor** result);

// Attention with a bias [Q, S] added to every head's scores, differentiable, by cuDNN; a GPU in half precision only. q [1, heads, Q, d],
// k [1, heads, S, d], v [1, heads, S, dv]. The rows of the bias begin at multiples of 16 numbers. lse [1, heads, Q, 1] f32.
int baleen_masked_attention(const baleen_tensor* q, const baleen_tensor* k, const baleen_tensor* v, const baleen_tensor* bias,
                            double scale, baleen_tensor** output, baleen_tensor** lse);

// to[i] = from[i], converted.
int baleen_foreach_copy_(baleen_tensor* const* to, baleen_tensor* const* from, size_t num_tensors);

#ifdef __cplusplus
}
#endif
