#include "features.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/file.h"
#include "../data/sha256.h"
#include "../data/weights.h"
#include "../tensor/memory.h"
#include "network.h"
#include "program.h"

namespace pupil {
namespace {

using Clock = std::chrono::steady_clock;

struct FeaturesArguments {
  std::string teacher, from, data, out, tap = "logits";
  int64_t image = 0, batch = 128, seed = 0;
  int threads = 0, workers = 1;
  bool strict = false;
};

Tensor tap_of(const models::Output& out, const nn::Taps& taps, const std::string& tap) {
  if (tap == "logits") return out.logits;
  if (tap == "features") return out.features;
  return taps[tap];
}

double since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Rows as they come, in OUT.partial, so that a run that was killed goes on where it stood: a line
// that says what they are of, their width in 16 characters, floats.
class PartialRows {
 public:
  PartialRows(const std::string& out, const std::string& what)
      : path_(out + ".partial"), head_(what + "\n"), begin_(int64_t(head_.size()) + kDigits) {
    file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    require(file_ >= 0);
    if (::flock(file_, LOCK_EX | LOCK_NB)) {
      ::close(file_);
      fail_input("features: another pupil features is writing ", out);
    }
    std::string found(size_t(begin_), 0);
    if (::pread(file_, found.data(), found.size(), 0) != begin_ || !found.starts_with(head_))
      return;
    width_ = std::atoll(found.c_str() + head_.size());
    if (width_ > 0)
      rows_ = std::max<int64_t>(::lseek(file_, 0, SEEK_END) - begin_, 0) / row_bytes();
  }
  ~PartialRows() { ::close(file_); }
  PartialRows(const PartialRows&) = delete;

  int64_t rows() const { return rows_; }
  int64_t width() const { return width_; }
  // The first n > 0 rows; later ones are forgotten.
  void keep(int64_t n, float* to) {
    at_ = begin_ + n * row_bytes();
    require(::ftruncate(file_, at_) == 0);
    char* bytes = reinterpret_cast<char*>(to);
    for (int64_t at = begin_; at < at_;) {
      ssize_t got = ::pread(file_, bytes + (at - begin_), size_t(at_ - at), at);
      require(got > 0);
      at += got;
    }
  }
  void append(const float* values, int64_t n, int64_t width) {
    if (!at_) {
      width_ = width;
      std::string head = head_ + std::to_string(width);
      head.resize(size_t(begin_), ' ');
      require(::ftruncate(file_, 0) == 0);
      write(head.data(), begin_);
    }
    write(reinterpret_cast<const char*>(values), n * row_bytes());
  }
  void remove() { ::unlink(path_.c_str()); }

 private:
  static constexpr int64_t kDigits = 16;
  int64_t row_bytes() const { return width_ * int64_t(sizeof(float)); }
  void require(bool fine) const {
    if (!fine) fail_input("features: ", path_, " cannot be written: ", std::strerror(errno));
  }
  void write(const char* data, int64_t bytes) {
    for (int64_t done = 0; done < bytes;) {
      ssize_t wrote = ::pwrite(file_, data + done, size_t(bytes - done), at_ + done);
      require(wrote > 0);
      done += wrote;
    }
    at_ += bytes;
  }

  std::string path_, head_;
  int64_t begin_;  // of the rows
  int file_ = -1;
  int64_t at_ = 0, rows_ = 0, width_ = 0;
};

// Rows that somebody else computed, in the order of the samples.
void import_rows(const FeaturesArguments& a) {
  data::Dataset set = data::open_dataset(a.data, a.strict, uint64_t(a.seed));
  Tensor rows = data::read_npy_rows(a.from);
  if (!is_floating(rows.dtype()) || rows.rank() != 2 || rows.dim(1) < 1)
    fail_input("features: ", a.from, " has the shape ", rows.shape(),
               "; floats (samples, width) are expected");
  if (rows.dim(0) != set.size())
    fail_input("features: ", a.from, " has ", rows.dim(0), " rows and ", set.spec, " has ",
               set.size(), " samples; give the rows of these samples in their order");
  rows = rows.to(DType::f32).contiguous();
  data::Sha256 sha;
  sha.add(rows.raw(), rows.bytes());
  data::FeatureHeader header;
  // of FILE.npy[ROWS.npy] too
  header.teacher = std::filesystem::path(a.from.substr(0, a.from.find(".npy"))).filename().string();
  header.weight_hash = sha.hex();
  header.preprocessing = "unknown: rows of an array";
  header.tap = a.tap;
  data::write_features(a.out, header, rows, set);
  std::cout << a.out << ": " << a.tap << " of " << header.teacher << " for " << set.size() << " of "
            << set.whole << " samples of " << set.spec << ", " << rows.dim(1) << " values each"
            << std::endl;
}

void features(const FeaturesArguments& a) {
  if (!a.from.empty()) return import_rows(a);
  use_threads(a.threads);
  NetworkConfig config = parse_network(a.teacher);
  config.image = a.image;
  Network teacher = load_network(config);
  std::vector<std::string> known = teacher.model.taps;
  known.insert(known.begin(), {"logits", "features"});
  if (std::find(known.begin(), known.end(), a.tap) == known.end())
    fail_input("--tap: ", teacher.model.name, " has no tap \"", a.tap, "\"",
               did_you_mean(a.tap, known));
  data::Dataset set = data::open_dataset(a.data, a.strict, uint64_t(a.seed));
  require_input(teacher.model, set);
  // Claims the output before the work: an unwritable folder is known at once, not after an hour.
  { data::FileWriter probe(a.out); }
  FeaturePass pass;
  pass.tap = a.tap;
  pass.out = a.out;
  pass.header.teacher = teacher.model.name;
  pass.header.weight_hash = teacher.weights->hash();
  pass.header.preprocessing = models::describe(teacher.model.input);
  pass.loader.batch = a.batch;
  pass.loader.workers = a.workers;
  auto begin = Clock::now();
  bool shown = false, terminal = ::isatty(STDERR_FILENO);
  pass.progress = [&](int64_t done, int64_t left) {
    double seconds = since(begin);
    if (!terminal || seconds < 1) return;
    shown = true;
    std::fprintf(stderr, "\r%lld of %lld samples  %.0f/s  left %.0f s   ",
                 (long long)(set.size() - left), (long long)set.size(), double(done) / seconds,
                 seconds * double(left) / double(done));
  };
  pass.goes_on = [&](int64_t done) {
    std::printf("goes on behind sample %lld of %lld\n", (long long)done, (long long)set.size());
  };
  store_features(teacher.model, set, pass);
  if (shown) std::fprintf(stderr, "\n");
  std::printf("%s: %s of %s for %lld of %lld samples of %s, %lld values each, %.1f s\n",
              a.out.c_str(), a.tap.c_str(), teacher.model.name.c_str(), (long long)set.size(),
              (long long)set.whole, set.spec.c_str(),
              (long long)data::FeatureFile(a.out).header().width, since(begin));
}

}  // namespace

bool store_features(const models::Model& model, const data::Dataset& set, FeaturePass pass) {
  data::FeatureHeader& header = pass.header;
  header.tap = pass.tap;
  data::LoaderOptions& options = pass.loader;
  options.batch = std::min(options.batch, set.size());
  data::Loader loader(set, {model.input}, options);
  data::Sha256 order;
  order.add(set.rows.data(), set.rows.size() * sizeof(int64_t));
  nlohmann::json what{{"format", "pupil-partial-features-1"},
                      {"teacher", header.teacher},
                      {"weights", header.weight_hash},
                      {"input", header.preprocessing},
                      {"tap", header.tap},
                      {"view", header.view},
                      {"drawn", header.drawn},
                      {"classes", header.class_names},
                      {"data", set.hash},
                      {"order", order.hex()},
                      {"batch", options.batch}};
  PartialRows partial(pass.out, what.dump());
  Tensor rows;
  int64_t batches = std::min(partial.rows(), set.size()) / options.batch;
  int64_t done = batches * options.batch;
  if (done) {
    ModelScope keep;
    rows = empty({set.size(), partial.width()});
    partial.keep(done, rows.data<float>());
    if (pass.goes_on) pass.goes_on(done);
  }
  loader.start(std::max<int64_t>(header.view - 1, 0), batches);
  NoGrad no_grad;
  nn::Prepared prepared;
  const int64_t before = done;
  for (data::Batch batch; loader.next(batch);) {
    StepScope step;
    nn::Taps taps({pass.tap});
    models::Output out = model.forward(batch.x[0], {.taps = &taps, .prepared = &prepared});
    Tensor values = tap_of(out, taps, pass.tap).to(Device{}).to(DType::f32).contiguous();
    int64_t n = values.dim(0), width = values.numel() / n;
    if (!rows) {
      ModelScope keep;
      rows = empty({set.size(), width});
    }
    std::copy_n(values.data<float>(), n * width, rows.data<float>() + done * width);
    partial.append(values.data<float>(), n, width);
    done += n;
    if (pass.progress) pass.progress(done - before, set.size() - done);
    if (done < set.size() && pass.stop && pass.stop()) return false;
  }
  data::write_features(pass.out, header, rows, set);
  partial.remove();
  return true;
}

void add_features_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("features", "store what a teacher says of every sample, once");
  command->footer(
      "Examples:\n"
      "  pupil features --teacher resnet56_cifar:resnet56.th --data cifar10:DIR:train --out "
      "logits.safetensors\n"
      "  pupil features --teacher runs/teacher/best.safetensors --data folder:DIR --tap features "
      "--out f.safetensors\n"
      "  pupil features --from clip.npy --data npy:X.npy+Y.npy --tap features --out f.safetensors\n"
      "A run that was stopped goes on when it is started again.\n"
      "Then in the configuration: [[teacher]] features = [\"logits.safetensors\"]");
  auto a = std::make_shared<FeaturesArguments>();
  auto* source = command->add_option_group("source");
  source->add_option("--teacher", a->teacher, "MODEL:CHECKPOINT, or the CHECKPOINT of a run");
  source->add_option(
      "--from", a->from,
      "or ROWS.npy, one row of floats for each sample in order (FILE.npy[NUMBERS.npy]: "
      "the rows with these numbers)");
  source->require_option(1);
  command->add_option("--data", a->data, "KIND:PATH[:SPLIT[N]]")->required();
  command->add_option("--out", a->out, "the file to write")->required();
  command
      ->add_option("--tap", a->tap,
                   "logits, features, or a tap of the model (pupil models), stored flat")
      ->capture_default_str();
  command->add_option("--image", a->image, "side in pixels (0: as the model or the file says)")
      ->check(CLI::Range(0, 8192));
  command->add_option("--batch", a->batch, "samples at a time")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  command->add_option("--seed", a->seed, "of the subset [N], the run's data.seed")
      ->check(CLI::Range(int64_t(0), std::numeric_limits<int64_t>::max()));
  command->add_option("--workers", a->workers, "decoding threads")
      ->capture_default_str()
      ->check(CLI::Range(0, 256));
  command->add_flag("--strict", a->strict, "an unreadable image is an error");
  add_threads_option(*command, a->threads);
  command->callback([a] { features(*a); });
}

}  // namespace pupil
