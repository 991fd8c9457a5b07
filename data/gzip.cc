#include "gzip.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>

namespace pupil::data {

GzipFile::GzipFile(const std::string& path, const std::string& expected) : path_(path) {
  // O_NONBLOCK: opening a pipe without a writer would wait for ever.
  int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat info;
  if (file < 0 || ::fstat(file, &info)) {
    int error = errno;
    if (file >= 0) ::close(file);
    fail_input("data: cannot open ", path, ": ", std::strerror(error));
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(file);
    fail_input("data: ", path, S_ISDIR(info.st_mode) ? " is a folder" : " is not a regular file",
               "; ", expected, " was expected");
  }
  file_ = gzdopen(file, "rb");
  PUPIL_CHECK(file_, "zlib cannot read ", path);
  gzbuffer(file_, 1 << 17);
}

GzipFile::~GzipFile() { gzclose(file_); }

int GzipFile::some(uint8_t* to, size_t count) {
  int got = gzread(file_, to, unsigned(std::min<size_t>(count, 1 << 30)));
  if (got > 0) return got;
  int code = Z_OK;
  const char* reason = gzerror(file_, &code);  // a bad or missing checksum shows only at the end
  if (code == Z_BUF_ERROR) reason = "ends too early";
  if (code != Z_OK) fail_input("data: ", path_, ": ", reason, "; fetch the file again");
  return 0;
}

void GzipFile::read(uint8_t* to, size_t count) {
  while (count) {
    int got = some(to, count);
    if (got == 0)
      fail_input("data: ", path_, " ends ", count, " bytes too early; fetch the file again");
    to += got;
    count -= size_t(got);
  }
}

void GzipFile::expect_end() {
  uint8_t extra;
  if (some(&extra, 1)) fail_input("data: ", path_, " is longer than its header says");
}

std::string GzipFile::rest(size_t limit) {
  std::string text;
  uint8_t part[1 << 16];
  while (int got = some(part, sizeof part)) {
    if (text.size() + size_t(got) > limit)
      fail_input("data: ", path_, " is longer than ", limit, " bytes");
    text.append(part, part + got);
  }
  return text;
}

}  // namespace pupil::data
