// See shim.h for the contract of every function. The allocator is found by device type at run time, so
// that nothing of libtorch's CUDA half is linked.
#include "shim.h"

#include <c10/core/CachingDeviceAllocator.h>

#include "guarded.h"

using baleen::guarded;

extern "C" {

int baleen_gpu_peak_memory(int device, int64_t* allocated, int64_t* reserved) {
  return guarded([&] {
    auto* allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    const auto stats = allocator->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *allocated = stats.allocated_bytes[all].peak;
    *reserved = stats.reserved_bytes[all].peak;
  });
}

int baleen_gpu_kept_memory(int device, int64_t* kept) {
  return guarded([&] {
    auto* allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    const auto stats = allocator->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *kept = stats.reserved_bytes[all].current - stats.allocated_bytes[all].current;
  });
}

int baleen_reset_gpu_peak_memory(int device) {
  return guarded([&] {
    c10::getDeviceAllocator(c10::DeviceType::CUDA)
        ->resetPeakStats(static_cast<c10::DeviceIndex>(device));
  });
}

} // extern "C"
