// The folder of one training run: its files, its lock, and writes that are whole or absent.
#pragma once
#include <functional>

#include "../tensor/core.h"

namespace pupil {

std::string read_file(const std::string& path);

class RunFolder {
 public:
  // Creates the folder, or with `resume` takes an existing one, and locks it against other runs.
  // `config` is the name of the file with the resolved configuration. Throws InputError: in use,
  // not writable, holds other files, or already holds a run and `resume` is false.
  RunFolder(const std::string& path, bool resume, const std::string& config = "config.toml");
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  bool has(const std::string& name) const;

  void write_config(const std::string& toml);
  // Throws InputError unless the stored configuration says the same; comments do not matter.
  // again(path): the stored file read and written anew, so that a key that is younger than the
  // folder has its default.
  void require_config(const std::string& toml,
                      const std::function<std::string(const std::string& path)>& again) const;
  // environment.json: program, machine, threads, and `sources`, a JSON object of hashes.
  void write_environment(const std::string& sources) const;
  // Throws InputError unless the stored sources are these; a warning on stderr when the program or
  // the machine is another.
  void require_environment(const std::string& sources) const;
  void append(const std::string& name, const std::string& line);  // synced before it returns
  int64_t size(const std::string& name) const;                    // 0 when there is no such file
  // Cuts the file to `bytes`, so that it says what the checkpoint remembers.
  void truncate(const std::string& name, int64_t bytes);

  void discard();  // removes the folder again, and those above it that the constructor made

 private:
  std::string path_, config_;
  std::vector<std::string> made_;  // folders that did not exist before, innermost first
  int lock_ = -1;
};

// RUN/best.safetensors, else RUN/last.safetensors. InputError when there is none.
std::string best_checkpoint(const std::string& run);

}  // namespace pupil
