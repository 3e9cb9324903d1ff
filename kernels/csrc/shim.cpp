// See shim.h for the contract of every function.
#include "shim.h"

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include "guarded.h"

namespace {

using at::Tensor;
using baleen::guarded;
namespace ag = torch::autograd;

std::vector<Tensor> list(Tensor* const* tensors, size_t count) {
  std::vector<Tensor> out;
  out.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    out.push_back(*tensors[i]);
  }
  return out;
}

Tensor* hand_out(Tensor tensor) {
  return tensor.defined() ? new Tensor(std::move(tensor)) : nullptr;
}

void hand_out(std::vector<Tensor> tensors, Tensor** result) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    result[i] = hand_out(std::move(tensors[i]));
  }
}

Tensor take(Tensor* pointer) {
  if (pointer == nullptr) {
    return Tensor();
  }
  std::unique_ptr<Tensor> owner(pointer);
  return std::move(*owner);
}

struct Closure {
  void* pointer;
  baleen_backward_fn call;
  baleen_drop_fn drop;

  Closure(void* pointer, baleen_backward_fn call, baleen_drop_fn drop)
      : pointer(pointer), call(call), drop(drop) {}
  Closure(const Closure&) = delete;
  Closure& operator=(const Closure&) = delete;
  ~Closure() { drop(pointer); }
};

struct ClosureNode final : ag::Node {
  std::unique_ptr<Closure> closure;

  std::string name() const override { return "BaleenClosure"; }

  ag::variable_list apply(ag::variable_list&& grads) override {
    if (!closure) {
      throw std::runtime_error("this graph was already used for a backward pass");
    }
    std::vector<Tensor*> incoming;
    for (Tensor& grad : grads) {
      incoming.push_back(hand_out(std::move(grad)));
    }
    std::vector<Tensor*> outgoing(num_outputs(), nullptr);
    char message[1024] = "";
    int failed = closure->call(closure->pointer, incoming.data(), incoming.size(),
                               outgoing.data(), outgoing.size(), message, sizeof message);
    ag::variable_list result;
    for (Tensor* grad : outgoing) {
      result.push_back(take(grad));
    }
    if (failed) {
      throw std::runtime_error(message);
    }
    return result;
  }

  // The engine calls this right after apply(), before it wakes the thread that waits in
  // backward(): the closure is gone by then, whatever thread ran it.
  void release_variables() override { closure.reset(); }
};

} // namespace

extern "C" {

const char* baleen_last_error(void) { return baleen::last_error.c_str(); }

int baleen_grad_mode_is_enabled(void) { return at::GradMode::is_enabled() ? 1 : 0; }

int baleen_clear_grad(const Tensor* leaf) {
  return guarded([&] { leaf->mutable_grad().reset(); });
}

int baleen_backward(Tensor* const* outputs, size_t num_outputs, Tensor* const* grads,
                    size_t num_grads) {
  return guarded([&] { ag::backward(list(outputs, num_outputs), list(grads, num_grads)); });
}

int baleen_grad(Tensor* const* outputs, size_t num_outputs, Tensor* const* grads,
                size_t num_grads, Tensor* const* inputs, size_t num_inputs, Tensor** result) {
  return guarded([&] {
    hand_out(ag::grad(list(outputs, num_outputs), list(inputs, num_inputs), list(grads, num_grads),
                      /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true),
             result);
  });
}

int baleen_custom(Tensor* const* outputs, size_t num_outputs, Tensor* const* inputs,
                  size_t num_inputs, void* pointer, baleen_backward_fn call, baleen_drop_fn drop,
                  Tensor** result) {
  auto closure = std::make_unique<Closure>(pointer, call, drop);
  return guarded([&] {
    ag::variable_list sources = list(inputs, num_inputs);
    // variable_data() shares storage but neither history nor view relations, so that an output
    // that happens to be a view of an input is a tensor like any other.
    ag::variable_list made;
    for (size_t i = 0; i < num_outputs; ++i) {
      made.push_back(outputs[i]->variable_data());
    }
    if (ag::compute_requires_grad(sources)) {
      std::shared_ptr<ClosureNode> node(new ClosureNode(), ag::deleteNode);
      node->closure = std::move(closure);
      node->set_next_edges(ag::collect_next_edges(sources));
      for (Tensor& output : made) {
        if (ag::isDifferentiableType(output.scalar_type())) {
          ag::set_history(output, node);
        } else {
          node->add_input_metadata(ag::Node::undefined_input());
        }
      }
    }
    hand_out(std::move(made), result);
  });
}

int baleen_fused_adamw_(Tensor* const* params, Tensor* const* grads, Tensor* const* exp_avgs,
                        Tensor* const* exp_avg_sqs, size_t num_params, int64_t step, double lr,
                        double beta1, double beta2, double weight_decay, double eps) {
  return guarded([&] {
    if (num_params == 0) {
      return;
    }
    at::AutoGradMode no_grad(false);
    // libtorch reads the step count from one f32 scalar a parameter; it doesn't write them, so
    // all can be the same one.
    Tensor count = at::full({}, static_cast<double>(step), params[0]->options().dtype(at::kFloat));
    std::vector<Tensor> steps(num_params, count);
    at::_fused_adamw_(list(params, num_params), list(grads, num_params),
                      list(exp_avgs, num_params), list(exp_avg_sqs, num_params), {}, steps, lr,
                      beta1, beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false);
  });
}

int baleen_foreach_norm(Tensor* const* tensors, size_t num_tensors, Tensor** result) {
  return guarded([&] {
    at::AutoGradMode no_grad(false);
    hand_out(at::_foreach_norm(list(tensors, num_tensors), 2), result);
  });
}

int baleen_foreach_scale_(Tensor* const* tensors, size_t num_tensors, double factor) {
  return guarded([&] {
    at::AutoGradMode no_grad(false);
    at::_foreach_mul_(list(tensors, num_tensors), at::Scalar(factor));
  });
}

int baleen_varlen_attention(const Tensor* q, const Tensor* k, const Tensor* v, const Tensor* cum_q,
                            const Tensor* cum_k, int64_t longest_q, int64_t longest_k, double scale,
                            Tensor** result) {
  return guarded([&] {
    auto outputs = at::_flash_attention_forward(*q, *k, *v, *cum_q, *cum_k, longest_q, longest_k,
                                                /*dropout_p=*/0.0, /*is_causal=*/true,
                                                /*return_debug_mask=*/false, std::optional<double>(scale));
    *result = hand_out(std::get<0>(std::move(outputs)));
  });
}

int baleen_masked_attention(const Tensor* q, const Tensor* k, const Tensor* v, const Tensor* bias, double scale, Tensor** output,
                            Tensor** lse) {
  return guarded([&] {
    const std::optional<Tensor> of_heads = bias->expand({q->size(0), q->size(1), q->size(2), k->size(2)});
    auto all = at::_scaled_dot_product_cudnn_attention(*q, *k, *v, of_heads, /*compute_log_sumexp=*/true,
                                                       /*dropout_p=*/0.0, /*is_causal=*/false,
                                                       /*return_debug_mask=*/false, scale);
    *output = hand_out(std::get<0>(std::move(all)));
    *lse = hand_out(std::get<1>(std::move(all)));
  });
}

int baleen_upload(const void* values, int64_t count, const Tensor* like, int device, Tensor** result) {
  return guarded([&] {
    Tensor host = at::empty({count}, like->options().pinned_memory(true));
    std::memcpy(host.data_ptr(), values, host.nbytes());
    at::Device card(at::kCUDA, static_cast<at::DeviceIndex>(device));
    *result = hand_out(host.to(card, host.scalar_type(), /*non_blocking=*/true));
  });
}

int baleen_foreach_copy_(Tensor* const* to, Tensor* const* from, size_t num_tensors) {
  return guarded([&] {
    at::AutoGradMode no_grad(false);
    at::_foreach_copy_(list(to, num_tensors), list(from, num_tensors));
  });
}

} // extern "C"
