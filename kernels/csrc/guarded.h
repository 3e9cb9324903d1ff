// How a call into libtorch fails across the C interface: shim.h has the contract.
#pragma once

#include <exception>
#include <string>

#include <c10/util/Exception.h>

namespace baleen {

// Of the newest failure on this thread; one for all files of the shim.
inline thread_local std::string last_error;

// No C++ exception may reach Rust.
template <typename Body>
int guarded(Body&& body) {
  try {
    body();
    return 0;
  } catch (const c10::Error& error) {
    last_error = error.what_without_backtrace();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "unknown C++ exception";
  }
  return 1;
}

} // namespace baleen
