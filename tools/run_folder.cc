#include "run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <dnnl.hpp>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/file.h"
#include "../tensor/runtime.h"
#include "machine.h"
#include "program.h"

namespace pupil {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void cannot_write(const std::string& path, int reason) {
  throw Error(concat("cannot write ", path, ": ", std::strerror(reason)));
}

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

void write_all(const Descriptor& to, const std::string& text, const std::string& path) {
  for (size_t done = 0; done < text.size();) {
    ssize_t n = ::write(to.fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) cannot_write(path, errno);
    done += size_t(n);
  }
  if (::fsync(to.fd) != 0) cannot_write(path, errno);
}

}  // namespace

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  bool some = file.peek() != EOF;  // an empty file is no failure
  if (!file.is_open() || file.bad() || (some && (text << file.rdbuf()).fail()))
    fail_input("cannot read ", path);
  return text.str();
}

RunFolder::RunFolder(const std::string& path, bool resume, const std::string& config)
    : path_(path), config_(config) {
  std::error_code error;
  fs::path folder = fs::absolute(path).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // "runs/kd/"
  for (fs::path p = folder; !fs::exists(p, error) && p != p.parent_path(); p = p.parent_path())
    made_.push_back(p.string());
  if (made_.empty() && !has("lock") && !has(config_) && !fs::is_empty(folder, error))
    fail_input("the folder ", path, " holds files that are not of a run; choose another with ",
               "--run DIR");
  fs::create_directories(folder, error);
  if (error)
    fail_input("cannot make the run folder ", path, ": ", error.message(),
               "; choose another with --run DIR");
  try {
    lock_ = ::open(file("lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock_ < 0)
      fail_input("cannot write into the run folder ", path, ": ", std::strerror(errno),
                 "; choose another with --run DIR");
    if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
      made_.clear();  // the other process may count on them
      fail_input("the run folder ", path, " is in use by another process; choose another with ",
                 "--run DIR");
    }
    if (!resume && has(config_))
      fail_input("the folder ", path, " already holds a run; continue it with --resume, or choose ",
                 "another with --run DIR");
  } catch (...) {
    discard();
    if (lock_ >= 0) ::close(lock_);
    throw;
  }
}

RunFolder::~RunFolder() {
  if (lock_ >= 0) ::close(lock_);
}

bool RunFolder::has(const std::string& name) const {
  std::error_code error;
  return fs::exists(file(name), error);
}

void RunFolder::write_config(const std::string& toml) { data::write_file(file(config_), toml); }

void RunFolder::require_config(
    const std::string& toml,
    const std::function<std::string(const std::string& path)>& again) const {
  std::istringstream now(toml), then(again(file(config_)));
  for (std::string a, b;;) {
    bool more = bool(std::getline(now, a));
    if (more != bool(std::getline(then, b)) || (more && a != b && a[0] != '#'))
      fail_input("--resume: the configuration differs from that of ", path_, ": now \"", a,
                 "\", then \"", b, "\"; use another --run DIR for another configuration");
    if (!more) break;
  }
}

namespace {

nlohmann::ordered_json describe_environment(const std::string& sources) {
  const dnnl_version_t* v = dnnl_version();
  return {{"version", version()},
          {"cpu", cpu_name()},
          {"cpu_features", cpu_features()},
          {"threads", cpu_threads()},
          {"onednn", concat(v->major, ".", v->minor, ".", v->patch)},
          {"plain_mode", plain_mode()},
          {"exact_mode", exact_mode()},
          {"sources", nlohmann::ordered_json::parse(sources)}};
}

}  // namespace

void RunFolder::write_environment(const std::string& sources) const {
  data::write_file(file("environment.json"), describe_environment(sources).dump(2) + "\n");
}

void RunFolder::require_environment(const std::string& sources) const {
  nlohmann::ordered_json now = describe_environment(sources),
                         stored = nlohmann::ordered_json::parse(read_file(file("environment.json")),
                                                                nullptr, false);
  if (stored.is_discarded() || !stored.contains("sources"))
    fail_input("--resume: cannot read ", file("environment.json"));
  if (stored["sources"] != now["sources"])
    fail_input("--resume: the data or the weights are not those that the run in ", path_,
               " began with (compare \"sources\" in its environment.json)");
  for (const char* key : {"version", "cpu", "threads", "onednn", "plain_mode", "exact_mode"})
    if (stored.contains(key) && stored[key] != now[key])
      std::cerr << "pupil: warning: " << key << " was " << stored[key] << " and is " << now[key]
                << ": the results may differ in the last bits\n";
}

void RunFolder::append(const std::string& name, const std::string& line) {
  std::string path = file(name);
  Descriptor to{::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)};
  if (to.fd < 0) cannot_write(path, errno);
  write_all(to, line + "\n", path);
}

int64_t RunFolder::size(const std::string& name) const {
  std::error_code error;
  auto bytes = fs::file_size(file(name), error);
  return error ? 0 : int64_t(bytes);
}

void RunFolder::truncate(const std::string& name, int64_t bytes) {
  if (size(name) < bytes)
    fail_input("run folder: ", file(name), " is shorter than the checkpoint remembers; it was ",
               "changed after the run stopped");
  if (has(name) && ::truncate(file(name).c_str(), off_t(bytes)) != 0)
    cannot_write(file(name), errno);
}

void RunFolder::discard() {
  std::error_code error;
  for (size_t i = 0; i < made_.size(); i++)
    if (i == 0)
      fs::remove_all(made_[i], error);
    else
      fs::remove(made_[i], error);  // only when it is empty: another run may have come
  made_.clear();
}

std::string best_checkpoint(const std::string& run) {
  for (const char* name : {"best.safetensors", "last.safetensors"}) {
    std::error_code error;
    std::string path = concat(run, "/", name);
    if (fs::exists(path, error)) return path;
  }
  fail_input("the folder ", run, " has neither best.safetensors nor last.safetensors: is it a run ",
             "folder, and has the run finished an epoch? `pupil train --run ", run,
             " --resume` goes on");
}

}  // namespace pupil
