// See shim.h for the contract of every function. Kineto, libtorch's own profiler, does the work.
#include "shim.h"

#include <atomic>
#include <memory>
#include <set>
#include <string>

#include <ATen/record_function.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include "guarded.h"

namespace profiler = torch::autograd::profiler;
using baleen::guarded;

namespace libkineto {
// Declared in a header of Kineto (src/Logger.h) that libtorch does not come with.
struct Logger {
  static std::atomic_int severityLevel_;
};
} // namespace libkineto

namespace {

// Above Kineto's ERROR: where there is no GPU it says so as an error on standard error.
constexpr int kSilent = 5;

bool is_cpu_only = false;

} // namespace

extern "C" {

int baleen_profiler_start(int with_gpu) {
  return guarded([&] {
    std::set<profiler::ActivityType> activities{profiler::ActivityType::CPU};
    if (with_gpu) {
      activities.insert(profiler::ActivityType::CUDA);
    }
    torch::profiler::impl::ExperimentalConfig all_threads;
    all_threads.profile_all_threads = true;
    const profiler::ProfilerConfig config(
        profiler::ProfilerState::KINETO, /*report_input_shapes=*/false, /*profile_memory=*/false,
        /*with_stack=*/false, /*with_flops=*/false, /*with_modules=*/false, all_threads);
    profiler::prepareProfiler(config, activities);
    profiler::enableProfiler(config, activities,
                             {at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE,
                              at::RecordScope::BACKWARD_FUNCTION});
    is_cpu_only = !with_gpu;
  });
}

int baleen_profiler_stop(const char* path) {
  return guarded([&] {
    if (is_cpu_only) {
      // Only now: Kineto sets its own level as it starts.
      libkineto::Logger::severityLevel_ = kSilent;
    }
    auto result = profiler::disableProfiler();
    if (path != nullptr) {
      result->save(path);
    }
  });
}

void* baleen_range_begin(const char* name) {
  auto* range = new at::RecordFunction(at::RecordScope::USER_SCOPE);
  if (!range->isActive()) {
    delete range;
    return nullptr;
  }
  if (guarded([&] { range->before(std::string(name)); }) != 0) {
    delete range;
    return nullptr;
  }
  return range;
}

void baleen_range_end(void* range) { delete static_cast<at::RecordFunction*>(range); }

} // extern "C"
