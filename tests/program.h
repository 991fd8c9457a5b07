// Drives the program as a person at a shell does: the built one, $PUPIL_PROGRAM, or in this
// process.
#pragma once
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "data/weights.h"
#include "support.h"
#include "tensor/random.h"
#include "tools/program.h"

namespace pupil::test {

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

struct Outcome {
  int code = -1;  // exit status; 128 + signal when it was killed
  std::string out, err;
};

class Process {
 public:
  // file_limit: bytes that a file may reach (a stand-in for a full disk); 0: no limit.
  Process(const std::vector<std::string>& arguments, const TemporaryFolder& folder,
          size_t file_limit = 0)
      : out_(folder / "stdout.txt"), err_(folder / "stderr.txt") {
    const char* program = std::getenv("PUPIL_PROGRAM");
    PUPIL_CHECK(program, "set PUPIL_PROGRAM to the built program");
    std::vector<char*> argv{const_cast<char*>(program)};
    for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    pid_ = fork();
    PUPIL_CHECK(pid_ >= 0, "fork failed");
    if (pid_) return;
    int out = open(out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    int err = open(err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (file_limit) {
      rlimit limit{file_limit, file_limit};
      setrlimit(RLIMIT_FSIZE, &limit);
      signal(SIGXFSZ, SIG_IGN);
    }
    if (out < 0 || err < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0 || chdir(folder.path().c_str()))
      _exit(126);
    execv(program, argv.data());
    _exit(127);
  }
  ~Process() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Process(const Process&) = delete;

  void send(int signal) { ::kill(pid_, signal); }

  bool running() {
    if (pid_ > 0 && waitpid(pid_, &status_, WNOHANG) == pid_) pid_ = 0;
    return pid_ > 0;
  }

  // Waits until `path` exists, or the program has ended; false then.
  bool wait_for(const std::string& path) {
    while (running()) {
      if (std::filesystem::exists(path)) return true;
      usleep(500);
    }
    return false;
  }

  Outcome wait() {
    if (pid_ > 0) waitpid(pid_, &status_, 0);
    pid_ = 0;
    int code = WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
    return {code, read_text(out_), read_text(err_)};
  }

 private:
  std::string out_, err_;
  pid_t pid_ = 0;
  int status_ = 0;
};

inline Outcome run_program(const std::vector<std::string>& arguments,
                           const TemporaryFolder& folder) {
  return Process(arguments, folder).wait();
}

// The same in this process.
inline Outcome run(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "pupil");
  std::vector<char*> argv;
  for (std::string& a : arguments) argv.push_back(a.data());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  int code = program(int(argv.size()), argv.data());
  std::string out = testing::internal::GetCapturedStdout();
  return {code, out, testing::internal::GetCapturedStderr()};
}

// DIR/SPLIT_images.npy and SPLIT_labels.npy: 8-bit images, brighter in a quarter that tells the
// class.
inline void write_images(const std::string& folder, const std::string& split, int64_t n,
                         int64_t classes = 4, int64_t side = 8, int64_t channels = 1) {
  std::filesystem::create_directories(folder);
  Shape shape = channels == 1 ? Shape{n, side, side} : Shape{n, side, side, channels};
  Tensor images = empty(shape, DType::u8);
  std::vector<int64_t> labels;
  uint8_t* pixel = images.data<uint8_t>();
  RngKey key{1, stream_id(split), 0};
  for (int64_t i = 0; i < n; i++) {
    labels.push_back(i % classes);
    for (int64_t y = 0; y < side; y++)
      for (int64_t x = 0; x < side; x++)
        for (int64_t c = 0; c < channels; c++) {
          int64_t quarter = 2 * (2 * y / side) + 2 * x / side;
          uint32_t noise = random_bits(key, pixel - images.data<uint8_t>()) % 128;
          *pixel++ = uint8_t(noise + (quarter == labels.back() % 4 ? 100 : 0));
        }
  }
  data::save_npy(folder + "/" + split + "_images.npy", images);
  data::save_npy(folder + "/" + split + "_labels.npy", from(labels, {n}));
}

// A configuration that trains in well under a second: a vision transformer of 4 tokens.
inline std::string tiny_config() {
  return R"toml([data]
train = "npy:data:train"
validation = "npy:data:test"
test = "npy:data:test"
[student]
model = "vit(dim=16,depth=1,heads=2,patch=4,image=8)"
[train]
epochs = 3
batch = 16
optimizer = "adamw"
lr = 0.01
)toml";
}

}  // namespace pupil::test
