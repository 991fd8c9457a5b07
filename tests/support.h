// What tests share: where reference data lies, temporary folders, running the program.
#pragma once
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "tensor/tensor.h"

namespace pupil::test {

// The folder of reference cases and real data: $PUPIL_SHARED, else ../shared beside the source,
// else "".
inline std::string shared_folder() {
  if (const char* path = std::getenv("PUPIL_SHARED")) return path;
  const char* source = std::getenv("PUPIL_SOURCE");
  std::filesystem::path beside = std::filesystem::path(source ? source : ".") / ".." / "shared";
  return std::filesystem::exists(beside) ? beside.string() : "";
}

// A new empty folder, removed with everything in it.
class TemporaryFolder {
 public:
  TemporaryFolder() : path_((std::filesystem::temp_directory_path() / "pupil-XXXXXX").string()) {
    PUPIL_CHECK(mkdtemp(path_.data()), "no temporary folder ", path_);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline double largest_difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.shape(), b.shape());
  std::vector<double> x = a.values(), y = b.values();
  double largest = 0;
  for (size_t i = 0; i < x.size(); i++) largest = std::max(largest, std::abs(x[i] - y[i]));
  return largest;
}

// f() must throw InputError with one line that contains all of these words.
template <class F>
void expect_refused(F&& f, std::initializer_list<std::string> words) {
  try {
    f();
  } catch (const InputError& error) {
    std::string message = error.what();
    for (const std::string& word : words)
      EXPECT_NE(message.find(word), std::string::npos) << "no '" << word << "' in: " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return;
  }
  ADD_FAILURE() << "nothing was refused";
}

}  // namespace pupil::test

// At the start of a test that needs reference data: skips, saying so, where there is none.
#define PUPIL_NEEDS_SHARED()                  \
  if (::pupil::test::shared_folder().empty()) \
  GTEST_SKIP() << "no reference data: set "   \
                  "PUPIL_SHARED"
