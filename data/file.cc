#include "file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>

namespace pupil::data {
namespace {

// errno in words that say what to do about it.
std::string reason(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "the disk is full; free some space";
    case EFBIG:
      return "the file would exceed the allowed file size";
    case EACCES:
    case EPERM:
    case EROFS:
      return concat("no permission (", strerror(error), ")");
    default:
      return strerror(error);
  }
}

std::string folder_of(const std::string& path) {
  std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  // O_NONBLOCK: opening a pipe without a writer would wait for ever.
  int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) {
    if (errno == ENOENT) fail_input(printable(path), ": no such file");
    fail_input(printable(path), ": cannot be read: ", reason(errno));
  }
  struct stat info;
  int error = ::fstat(file, &info) ? errno : 0;
  if (!error && !S_ISREG(info.st_mode)) {
    ::close(file);
    fail_input(printable(path), S_ISDIR(info.st_mode) ? ": is a folder; a file was expected"
                                                      : ": is not a regular file");
  }
  if (!error && info.st_size > 0) {
    void* mapped = ::mmap(nullptr, size_t(info.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    if (mapped == MAP_FAILED) {
      error = errno;
    } else {
      data_ = static_cast<uint8_t*>(mapped);
      size_ = size_t(info.st_size);
    }
  }
  ::close(file);
  if (error) fail_input(printable(path), ": cannot be read: ", reason(error));
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, size_);
}

void MappedFile::give_back(const void* first, size_t bytes) const {
  static const uintptr_t page = uintptr_t(::sysconf(_SC_PAGESIZE));
  uintptr_t begin = (uintptr_t(first) + page - 1) / page * page;  // neighbours may be in use
  uintptr_t end = (uintptr_t(first) + bytes) / page * page;
  // Advice: where it is refused the pages stay.
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void explain_lost_files() {
  struct sigaction action {};
  action.sa_flags = SA_SIGINFO | int(SA_RESETHAND);
  action.sa_sigaction = [](int, siginfo_t* info, void*) {
    if (info->si_code != BUS_ADRERR) return;  // comes again, with the default action
    constexpr std::string_view kText =
        "pupil: a file became shorter while it was read, or its disk failed; give the command "
        "again when it is whole\n";
    [[maybe_unused]] ssize_t told = ::write(STDERR_FILENO, kText.data(), kText.size());
    ::_exit(2);
  };
  ::sigaction(SIGBUS, &action, nullptr);
}

FileWriter::FileWriter(const std::string& path) : path_(path) {
  std::error_code none;
  for (int links = 0; links < 40 && std::filesystem::is_symlink(path_, none); links++)
    path_ =
        (std::filesystem::path(path_).parent_path() / std::filesystem::read_symlink(path_, none))
            .string();
  if (path_.empty() || path_.ends_with('/') || std::filesystem::is_directory(path_, none))
    fail_input(printable(path), ": is a folder; give the name of a file");
  if (std::filesystem::exists(path_, none) && !std::filesystem::is_regular_file(path_, none))
    fail_input(printable(path), ": is not a regular file and cannot be replaced");
  temporary_ = path_ + ".tmp";
  // The lock tells a leftover of a killed process from a file that is being written now.
  for (;;) {
    file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (file_ < 0) {
      if (errno == ENOENT)
        fail_input(printable(path), ": the folder ", printable(folder_of(path_)),
                   " does not exist");
      if (errno == ENOSPC || errno == EDQUOT)
        throw Error(concat(printable(path), ": cannot be written: ", reason(errno)));
      fail_input(printable(path), ": cannot be created: ", reason(errno));
    }
    if (::flock(file_, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) {
      ::close(file_);
      file_ = -1;
      fail_input(printable(path), ": is being written by another process");
    }  // a file system without locks: go on without
    struct stat ours, named;
    if (!::fstat(file_, &ours) && !::stat(temporary_.c_str(), &named) &&
        ours.st_ino == named.st_ino && ours.st_dev == named.st_dev)
      break;
    ::close(file_);  // another writer renamed or removed it between open and lock
  }
  if (::ftruncate(file_, 0)) {
    int error = errno;
    ::close(file_);
    fail_input(printable(path), ": cannot be created: ", reason(error));
  }
}

FileWriter::~FileWriter() {
  if (file_ < 0) return;
  ::unlink(temporary_.c_str());  // before the lock goes with the descriptor
  ::close(file_);
}

void FileWriter::write(const void* data, size_t bytes) {
  PUPIL_CHECK(file_ >= 0, "write: ", path_, " is already committed");
  const char* next = static_cast<const char*>(data);
  while (bytes) {
    ssize_t n = ::write(file_, next, std::min(bytes, size_t(1) << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error(concat(printable(path_), ": cannot be written: ", reason(errno)));
    next += n;
    bytes -= size_t(n);
  }
}

void FileWriter::commit() {
  PUPIL_CHECK(file_ >= 0, "commit: ", path_, " is already committed");
  if (::fsync(file_) || ::rename(temporary_.c_str(), path_.c_str()))
    throw Error(concat(printable(path_), ": cannot be written: ", reason(errno)));
  ::close(file_);  // its content is on the disk: an error here has nothing to say
  file_ = -1;
  // The rename itself must survive a power cut. Some file systems cannot sync a folder (EINVAL).
  int folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int error = folder < 0 || ::fsync(folder) ? errno : 0;
  if (folder >= 0) ::close(folder);
  if (error && error != EINVAL && error != EACCES)
    throw Error(concat(printable(path_), ": its folder cannot be synced: ", reason(error)));
}

ScratchFolder::ScratchFolder()
    : path((std::filesystem::temp_directory_path() / "pupil-XXXXXX").string()) {
  if (!::mkdtemp(path.data())) fail_input(path, ": cannot be created: ", reason(errno));
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

void write_file(const std::string& path, std::string_view content) {
  FileWriter file(path);
  file.write(content);
  file.commit();
}

std::string printable(std::string_view text) {
  constexpr size_t kLongest = 120;
  std::string out;
  for (unsigned char c : text.substr(0, kLongest)) {
    if (c < 32 || c == 127) {
      const char* digits = "0123456789abcdef";
      out += {'\\', 'x', digits[c >> 4], digits[c & 15]};
    } else {
      out += char(c);
    }
  }
  return text.size() > kLongest ? out + "..." : out;
}

}  // namespace pupil::data
