// Files on disk: read-only mapping and writing that never leaves a half-written file behind.
#pragma once
#include "../tensor/core.h"

namespace pupil::data {

// A whole file, mapped read-only. Throws InputError when it is missing, unreadable or not a regular
// file (a pipe is refused, not waited for). Replacing the file by FileWriter leaves the mapping
// intact; writing into it may show in the mapping, and reading beyond the end of one that became
// shorter is a SIGBUS (explain_lost_files).
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }
  const std::string& path() const { return path_; }

  bool holds(const uint8_t* p) const { return p >= data_ && p < data_ + size_; }
  // Memory of these bytes that is not needed now; they stay readable. A piece of the mapping.
  void give_back(const void* first, size_t bytes) const;

 private:
  std::string path_;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// From now on a mapped file that became shorter, or whose disk fails, ends the program with one
// line on stderr and exit code 2.
void explain_lost_files();

// Writes to PATH.tmp in the same folder; commit() syncs it, renames it to PATH and syncs the
// folder, so that PATH is at every moment, also after a power cut, the old file or the whole new
// one. Without commit() the temporary file is removed. One left behind by a killed process is
// reused by the next writer; one of a living process is refused. A PATH that is a symbolic link
// stays one. Throws InputError when the file cannot be created there (missing or unwritable
// folder), Error when writing fails (disk full); both messages name the file.
class FileWriter {
 public:
  explicit FileWriter(const std::string& path);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void commit();

 private:
  std::string path_, temporary_;
  int file_ = -1;
};

// A folder for temporary files; it is gone when this ends.
struct ScratchFolder {
  std::string path;
  ScratchFolder();
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
};

void write_file(const std::string& path, std::string_view content);  // FileWriter in one call

// Text of a file's own making (a tensor's name), safe to print in one line of a message: control
// characters as \xNN, cut after 120 bytes.
std::string printable(std::string_view);

}  // namespace pupil::data
