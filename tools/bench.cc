#include "bench.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/data.h"
#include "../data/file.h"
#include "../data/image.h"
#include "../methods/aft.h"
#include "../methods/objective.h"
#include "../tensor/memory.h"
#include "../tensor/runtime.h"
#include "program.h"

namespace pupil {
namespace {

constexpr int64_t kTeacherWidth = 2048;
constexpr const char* kPhotographs = "jpeg_224";
constexpr int kWarmUp = 3;  // steps that build primitives and touch memory for the first time

struct Workload {
  std::string name, summary, student;
  std::string teacher;  // a model that is asked in every step, or empty
  std::vector<methods::Choice> methods;
  bool trains = true;  // else one forward pass a step
  int64_t image = 32, classes = 10, batch = 128;
};

const std::vector<Workload>& workloads() {
  static const std::vector<Workload> list{
      {"resnet20_c10_train", "ResNet-20 on 32x32 images", "resnet20_cifar", "", {}},
      {"kd_resnet56_resnet20_train",
       "ResNet-20 taught by a live ResNet-56 (KD)",
       "resnet20_cifar",
       "resnet56_cifar",
       {{"kd", {}, {}}}},
      {"vit_tiny4_32_train",
       "ViT-Tiny with patches of 4 on 32x32 images",
       "vit(dim=192,depth=12,heads=3,patch=4,image=32)",
       "",
       {}},
      {"aft_loss",
       "the AFT loss alone, forward and backward, student 192 and teacher 3200 wide",
       "",
       "",
       {}},
      {"aft_vit_tiny4_32_train",
       "the same with AFT and stored teacher features, 2048 wide",
       "vit(dim=192,depth=12,heads=3,patch=4,image=32)",
       "",
       {{"aft", {}, {}}}},
      {"resnet18_224_train", "ResNet-18", "resnet18", "", {}, true, 224, 1000, 16},
      {"vit_tiny16_224_train", "ViT-Tiny", "vit_tiny_patch16_224", "", {}, true, 224, 1000, 16},
      {"mobilenetv2_224_train", "MobileNetV2", "mobilenetv2_100", "", {}, true, 224, 1000, 16},
      {"resnet20_c10_infer", "ResNet-20, forward alone", "resnet20_cifar", "", {}, false},
      {"vit_tiny4_32_infer",
       "ViT-Tiny with patches of 4, forward alone",
       "vit(dim=192,depth=12,heads=3,patch=4,image=32)",
       "",
       {},
       false},
      {"resnet18_224_infer", "ResNet-18, forward alone", "resnet18", "", {}, false, 224, 1000, 16},
      {"vit_tiny16_224_infer",
       "ViT-Tiny, forward alone",
       "vit_tiny_patch16_224",
       "",
       {},
       false,
       224,
       1000,
       16},
      {"mobilenetv2_224_infer",
       "MobileNetV2, forward alone",
       "mobilenetv2_100",
       "",
       {},
       false,
       224,
       1000,
       16},
      {"vit_base16_224_infer",
       "ViT-Base, forward alone",
       "vit_base_patch16_224",
       "",
       {},
       false,
       224,
       1000,
       16},
      {kPhotographs,
       "JPEGs of 640x480 to tensors of 224x224, a step is all of them",
       "",
       "",
       {},
       false,
       224,
       1,
       1000}};
  return list;
}

struct BenchArguments {
  std::vector<std::string> names;
  int64_t batch = 0;  // 0: the workload's
  int steps = 20, threads = 0;
  std::string dtype = "f32", weights, initial;
  bool as_json = false;
};

DType dtype_named(const std::string& name) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16})
    if (name == name_of(dtype)) return dtype;
  fail_input("bench: unknown dtype '", name, "': f32, f64 or bf16");
}

Tensor random_normal(const Shape& shape, const char* stream, DType dtype) {
  Tensor values = empty(shape);
  for (int64_t i = 0; i < values.numel(); i++)
    values.data<float>()[i] = float(normal({1, stream_id(stream), 0}, i));
  return values.to(dtype);
}

// The largest resident size since reset_peak(), in bytes.
void reset_peak() { std::ofstream("/proc/self/clear_refs") << "5"; }
int64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM:", 0) == 0) return std::stoll(line.substr(6)) * 1024;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t(usage.ru_maxrss) * 1024;
}

// Nearest-rank percentile of sorted values.
double percentile(const std::vector<double>& sorted, double share) {
  return sorted[size_t(std::lround(share * double(sorted.size() - 1)))];
}

// Seconds since this process was started, to a hundredth.
double age() {
  std::ifstream file("/proc/self/stat");
  std::string field;
  for (int i = 0; i < 22; i++) file >> field;  // the name, field 2, has no blank
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec) -
         std::stod(field) / double(sysconf(_SC_CLK_TCK));
}

struct Result {
  double first_step_s = 0;           // from the start of the process to the end of step 1
  std::vector<double> images_per_s;  // of each step, sorted
  int64_t batch, peak_rss_bytes;
  std::vector<double> losses;  // of each step, from the first on; none of photographs
};

// `step` gives its loss, if it has one.
Result time_steps(const std::string& name, int64_t batch, int steps,
                  const std::function<std::optional<double>()>& step) {
  Result result{};
  result.batch = batch;
  for (int i = 0; i < kWarmUp + steps; i++) {
    auto start = std::chrono::steady_clock::now();
    std::optional<double> loss = step();
    if (loss) result.losses.push_back(*loss);
    std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    if (i == 0) result.first_step_s = age();
    if (i >= kWarmUp) result.images_per_s.push_back(double(batch) / time.count());
  }
  if (!result.losses.empty() && !std::isfinite(result.losses.back()))
    throw Error("bench: " + name + ": the loss diverged");
  std::sort(result.images_per_s.begin(), result.images_per_s.end());
  result.peak_rss_bytes = peak_resident_bytes();
  return result;
}

using Named = std::vector<std::pair<std::string, Tensor>>;

Result run_aft_loss(const BenchArguments& a, int64_t size) {
  DType dtype = dtype_named(a.dtype);
  Tensor phi = random_normal({size, 192}, "bench phi", dtype).requires_grad_();
  Tensor psi = random_normal({size, 3200}, "bench psi", dtype);
  Tensor s = zeros({3200}, acc_dtype(dtype)).requires_grad_();
  if (!a.initial.empty()) data::save_safetensors(a.initial, {{"phi", phi}, {"psi", psi}});
  return time_steps("aft_loss", size, 10 * a.steps, [&] {
    StepScope scope;
    phi.zero_grad();
    s.zero_grad();
    Tensor loss = scale(methods::aft_delta(phi, psi, s), 10);
    backward(loss);
    double value = loss.item();
    phi.zero_grad();
    s.zero_grad();
    return value;
  });
}

// Smooth colours and noise, as a JPEG file of quality 90.
std::string photograph(uint64_t number) {
  RngKey key{1, stream_id("bench photograph"), number};
  data::Image coarse{12, 16, 3, std::vector<uint8_t>(12 * 16 * 3)};
  int64_t drawn = 0;
  for (uint8_t& value : coarse.pixels) value = uint8_t(random_bits(key, drawn++));
  data::Image image = data::resize(coarse, 480, 640, data::Filter::bicubic);
  uint32_t bits = 0;
  for (size_t i = 0; i < image.pixels.size(); i++, bits >>= 5) {
    if (i % 6 == 0) bits = random_bits(key, drawn++);
    image.pixels[i] = uint8_t(std::clamp(image.pixels[i] + int(bits & 31) - 16, 0, 255));
  }
  return data::encode_jpeg(image, 90);
}

// From files to normalised tensors, on as many threads as others compute.
Result run_photographs(const BenchArguments& a, int64_t count) {
  namespace fs = std::filesystem;
  data::ScratchFolder scratch;
  fs::path folder = fs::path(a.initial.empty() ? scratch.path : a.initial) / "all";
  std::error_code error;
  if (!fs::create_directories(folder, error) && error)
    fail_input("bench: cannot make the folder ", folder.string(), ": ", error.message());
  for (int64_t i = 0; i < count; i++)
    data::write_file((folder / fmt::format("{:05}.jpg", i)).string(), photograph(uint64_t(i)));
  data::Loader loader(
      data::open_dataset("folder:" + folder.parent_path().string()),
      {models::imagenet_preprocessing()},
      {.batch = std::min<int64_t>(count, 20), .workers = cpu_threads(), .augment = {}});
  return time_steps(kPhotographs, count, a.steps, [&] {
    data::Batch batch;
    loader.start(0);
    while (loader.next(batch)) {
    }
    return std::optional<double>();
  });
}

Result run(const Workload& work, const BenchArguments& a) {
  reset_peak();
  int64_t size = a.batch ? a.batch : work.batch, classes = work.classes;
  if (work.name == "aft_loss") return run_aft_loss(a, size);
  if (work.name == kPhotographs) return run_photographs(a, size);
  DType compute = dtype_named(a.dtype), dtype = acc_dtype(compute);  // of the parameters
  nn::Store store(0, dtype), teacher_store(1, dtype);
  nn::Scope scope(store);
  if (!a.weights.empty()) store.source(data::open_weights(a.weights));
  models::Model student = models::make_model(work.student, scope, {.classes = classes});
  store.require_complete();
  std::optional<models::Model> teacher;
  if (!work.teacher.empty())
    teacher = models::make_model(work.teacher, nn::Scope(teacher_store), {.classes = classes});
  methods::Setup setup;
  setup.classes = classes;
  setup.student_width = student.width;
  setup.teacher_widths = {teacher ? teacher->width : kTeacherWidth};
  setup.student_taps = student.taps;
  std::vector<std::string> names;
  for (const nn::Param& p : store.params())
    if (!p.buffer) names.push_back(p.name);
  methods::Objective objective(work.methods, scope, setup);
  std::vector<nn::Group> groups = objective.groups();
  groups.insert(groups.begin(), {names, 0.05, 1e-4});
  nn::OptimizerOptions options;
  options.momentum = 0.9;
  std::optional<nn::Optimizer> optimizer;  // it moves parameters and makes room for gradients
  if (work.trains) optimizer.emplace(store, groups, options);

  Tensor images = random_normal({size, 3, work.image, work.image}, "bench images", dtype);
  methods::Batch batch;
  std::vector<int64_t> labels, index;
  for (int64_t i = 0; i < size; i++) {
    labels.push_back(i * 7919 % classes);
    index.push_back(i);
  }
  batch.labels = from(labels, {size});
  batch.index = from(index, {size});
  Tensor stored;
  if (!teacher && objective.needs_teacher())
    stored = random_normal({size, kTeacherWidth}, "bench teacher", dtype);

  if (!a.initial.empty()) {
    Named named{{"images", images}, {"labels", batch.labels}};
    if (stored) named.emplace_back("stored", stored);
    for (const nn::Param& p : store.params()) named.emplace_back("student." + p.name, p.value);
    for (const nn::Param& p : teacher_store.params())
      named.emplace_back("teacher." + p.name, p.value);
    data::save_safetensors(a.initial, named);
  }
  Rng rng(0);
  nn::Prepared prepared;  // of the network that does not learn
  nn::Call asked{.prepared = &prepared};
  auto infer = [&] {
    StepScope scope;
    NoGrad no_grad;
    return cross_entropy(models::forward_in(compute, student, images, asked).logits, batch.labels)
        .item();
  };
  auto train = [&] {
    StepScope scope;
    std::vector<methods::Teacher> teachers;
    if (teacher) {
      NoGrad no_grad;
      models::Output out = models::forward_in(compute, *teacher, images, asked);
      teachers.push_back({"teacher", out.logits, out.features, {}});
    } else if (stored)
      teachers.push_back({"teacher", {}, stored, {}});
    nn::Taps taps(objective.student_taps());
    nn::Call call{true, &rng, &taps};
    models::Output out = models::forward_in(compute, student, images, call);
    methods::Loss loss = objective({batch, out, taps, teachers, call});
    optimizer->zero_grad();
    backward(loss.total);
    optimizer->step();
    rng.advance();
    return loss.total.item();
  };

  if (work.trains) return time_steps(work.name, size, a.steps, train);
  return time_steps(work.name, size, a.steps, infer);
}

void bench(const BenchArguments& a) {
  using Json = nlohmann::ordered_json;
  Json all = Json::array();
  if (a.names.empty()) {
    for (const Workload& work : workloads()) {
      if (a.as_json)
        all.push_back(
            {{"workload", work.name}, {"summary", work.summary}, {"model", work.student}});
      else
        std::cout << std::left << std::setw(28) << work.name << work.summary << "\n";
    }
    if (a.as_json) std::cout << all.dump(2) << "\n";
    return;
  }
  std::vector<const Workload*> chosen;
  std::vector<std::string> known;
  for (const Workload& work : workloads()) known.push_back(work.name);
  for (const std::string& name : a.names) {
    auto at = std::find(known.begin(), known.end(), name);
    if (at == known.end())
      fail_input("bench: unknown workload '", name, "'", did_you_mean(name, known),
                 " (pupil bench lists them)");
    chosen.push_back(&workloads()[size_t(at - known.begin())]);
    if (dtype_named(a.dtype) != DType::f32 && name == kPhotographs)
      fail_input("bench: ", name, " makes tensors in f32; leave out --dtype ", a.dtype);
  }
  if (!a.initial.empty() && chosen.size() > 1)
    fail_input("bench: --initial goes with one workload");
  if (!a.weights.empty() && (chosen.size() > 1 || chosen[0]->student.empty()))
    fail_input("bench: --weights goes with one workload that has a network");
  use_threads(a.threads);
  for (const Workload* work : chosen) {
    Result r = run(*work, a);
    double median = percentile(r.images_per_s, 0.5);
    size_t last = std::min<size_t>(r.losses.size(), 100);
    if (!a.as_json) {
      std::cout << std::left << std::setw(28) << work->name << std::fixed << std::setprecision(1)
                << median << " images/s (p10 " << percentile(r.images_per_s, 0.1) << ", p90 "
                << percentile(r.images_per_s, 0.9) << ")";
      if (last > 0)
        std::cout << ", loss " << std::setprecision(4) << r.losses.front() << " -> "
                  << r.losses[last - 1] << " in step " << last;
      std::cout << ", first step after " << std::setprecision(2) << r.first_step_s << " s, peak "
                << r.peak_rss_bytes / 1048576 << " MiB" << std::endl;
    }
    all.push_back({{"workload", work->name},
                   {"batch", r.batch},
                   {"threads", cpu_threads()},
                   {"dtype", a.dtype},
                   {"device", "cpu"},
                   {"images_per_s",
                    {{"median", median},
                     {"p10", percentile(r.images_per_s, 0.1)},
                     {"p90", percentile(r.images_per_s, 0.9)}}},
                   {"peak_rss_bytes", r.peak_rss_bytes},
                   {"first_step_s", r.first_step_s},
                   {"losses", r.losses},
                   {"loss_1", r.losses.empty() ? Json() : Json(r.losses[0])},
                   {"loss_100", r.losses.size() < 100 ? Json() : Json(r.losses[99])}});
  }
  if (a.as_json) std::cout << all.dump(2) << "\n";
}

}  // namespace

void add_bench_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "bench", "speed of fixed jobs on random images; without a name: lists them");
  command->footer("Example:\n  pupil bench resnet20_c10_train --steps 50 --json");
  auto a = std::make_shared<BenchArguments>();
  command->add_option("NAME", a->names, "workloads");
  command->add_option("--batch", a->batch, "images per step (128, 16 at 224 pixels, 1000 JPEGs)")
      ->check(CLI::Range(2, 65536));
  command->add_option("--steps", a->steps, "timed steps, after 3 that are not")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command
      ->add_option("--dtype", a->dtype,
                   "f32; bf16: activations and products, weights stay f32; f64")
      ->capture_default_str();
  command->add_option("--weights", a->weights, "initial weights of the (student) network");
  command->add_option("--initial", a->initial,
                      "writes initial weights and images: for another program to do the same (of "
                      "jpeg_224 a folder)");
  command->add_flag("--json", a->as_json, "for machines: also the losses of steps 1 and 100");
  add_threads_option(*command, a->threads);
  command->callback([a] { bench(*a); });
}

}  // namespace pupil
