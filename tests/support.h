// What tests share: where reference data lies, temporary folders, running the program.
#pragma once
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace pupil::test {

// The folder of reference cases and real data: $PUPIL_SHARED, else ../shared beside the source, else "".
inline std::string shared_folder() {
  if (const char* path = std::getenv("PUPIL_SHARED")) return path;
  const char* source = std::getenv("PUPIL_SOURCE");
  std::filesystem::path beside = std::filesystem::path(source ? source : ".") / ".." / "shared";
  return std::filesystem::exists(beside) ? beside.string() : "";
}

}  // namespace pupil::test

// At the start of a test that needs reference data: skips, saying so, where there is none.
#define PUPIL_NEEDS_SHARED() \
  if (::pupil::test::shared_folder().empty()) GTEST_SKIP() << "no reference data: set PUPIL_SHARED"
