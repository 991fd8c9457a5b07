// A file that may be packed with gzip, read from its beginning to its end.
#pragma once
#include "../tensor/core.h"

struct gzFile_s;

namespace pupil::data {

// zlib passes plain files on unchanged. Everything throws InputError with the path and what to do.
class GzipFile {
 public:
  GzipFile(const std::string& path, const std::string& expected);  // expected: "an idx file"
  ~GzipFile();
  GzipFile(const GzipFile&) = delete;
  GzipFile& operator=(const GzipFile&) = delete;

  void read(uint8_t* to, size_t count);
  void expect_end();
  std::string rest(size_t limit);  // up to the end; refused when it is longer than `limit` bytes

 private:
  int some(uint8_t* to, size_t count);  // 0 at the end
  std::string path_;
  gzFile_s* file_ = nullptr;
};

}  // namespace pupil::data
