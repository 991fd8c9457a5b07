#include "distill.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/convert.h"
#include "../data/file.h"
#include "../models/layout.h"
#include "distill_report.h"
#include "export.h"
#include "features.h"
#include "hf_config.h"
#include "interrupt.h"
#include "program.h"
#include "recognise.h"
#include "run_folder.h"
#include "text.h"
#include "train.h"
#include "zero_shot.h"

namespace pupil {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kFewestPhotos = 10, kFewPhotos = 200, kFewOfAClass = 5;
constexpr const char* kJob = "distill.json";

struct DistillArguments {
  std::string teacher, images, labels, out, folder;
  std::vector<std::string> students;
  ZeroShotArguments zero_shot;
  double hours = 0, temperature = 2, lr = 0;
  int64_t views = 60, epochs = 0, image = 0, batch = 0, seed = 0, workers = 1;
  int threads = -1;
};

bool is_there(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// The parts of `text` between separators that are in no parentheses, as in vit(dim=96,depth=6).
std::vector<std::string> parts_of(const std::string& text, char separator) {
  std::vector<std::string> parts{""};
  int depth = 0;
  for (char c : text) {
    depth += (c == '(') - (c == ')');
    if (c == separator && depth == 0)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

// NAME=FILE, or FILE.
NetworkConfig network_of(const std::string& text) {
  std::vector<std::string> parts = parts_of(text, '=');
  if (parts.size() < 2 || is_there(text) || parts[0].find('/') != std::string::npos)
    return parse_network(text);
  NetworkConfig config;
  config.model = parts[0];
  config.weights = text.substr(parts[0].size() + 1);
  return config;
}

struct StudentChoice {
  std::string name, head;  // of the network, and of its folder; parameters of its classifier
  StudentConfig config;
};

std::vector<StudentChoice> students_of(const DistillArguments& a) {
  std::vector<StudentChoice> all;
  for (const std::string& list : a.students)
    for (const std::string& text : parts_of(list, ',')) {
      StudentChoice student;
      bool file = is_there(text) || text.find('/') != text.npos;
      if (file || parts_of(text, '=').size() > 1)
        static_cast<NetworkConfig&>(student.config) = network_of(text);
      else
        student.config.model = text;
      if (student.config.model.empty())
        student.config.model = recognise(*models::in_our_names(data::open_weights(text)));
      if (!student.config.weights.empty()) {
        student.config.head = "new";
        data::open_weights(student.config.weights);  // refused now, not after the teacher's pass
      }
      student.config.image = a.image;
      nn::Store plan = nn::Store::blueprint();
      models::Model model = models::make_model(student.config.model, nn::Scope(plan));
      if (model.inputs || model.input.channels != 3)
        fail_input("--student ", text, " takes no photographs");
      student.name = student.config.model = model.name;
      student.head = model.head;
      for (const StudentChoice& other : all)
        if (other.name == student.name) fail_input("--students: ", student.name, " is there twice");
      all.push_back(std::move(student));
    }
  return all;
}

// A teacher with the classes that its students shall have.
struct DistillTeacher {
  Network network;
  std::string name;                  // and how it answers
  std::vector<std::string> classes;  // names; empty where nobody knows them
  int64_t all_classes = 0;           // of its classifier, and
  std::vector<int64_t> chosen;       // those of them that the students learn; empty: all
  int64_t bytes = 0;                 // of its file; 0: a folder
};

// Of a network with many classes only these.
void restrict_to(DistillTeacher& teacher, const std::vector<std::string>& wanted) {
  std::vector<int64_t>& columns = teacher.chosen;
  for (const std::string& name : wanted) {
    columns.push_back(class_named(name, teacher.classes));
    if (columns.back() < 0)
      fail_input("--classes: the teacher has no class \"", data::printable(name), "\"",
                 did_you_mean(name, teacher.classes));
    if (auto same = std::find(columns.begin(), columns.end() - 1, columns.back());
        same != columns.end() - 1)
      fail_input("--classes: \"", data::printable(wanted[size_t(same - columns.begin())]),
                 "\" and \"", data::printable(name), "\" are one class of the teacher, \"",
                 data::printable(teacher.classes[size_t(*same)]), "\"; leave one out");
  }
  teacher.classes = wanted;
  models::Model& model = teacher.network.model;
  model.classes = int64_t(columns.size());
  model.forward = [whole = model.forward, chosen = from(columns, {model.classes})](
                      const Tensor& x, const nn::Call& call) {
    models::Output out = whole(x, call);
    out.logits = index_select(out.logits, chosen, 1);
    return out;
  };
}

DistillTeacher open_teacher(const DistillArguments& a) {
  NetworkConfig config = network_of(a.teacher);
  if (!is_there(config.weights)) fail_input("--teacher: there is no file ", config.weights);
  if (fs::is_directory(config.weights) && is_there(config.weights + "/metrics.jsonl"))
    config.weights = best_checkpoint(config.weights);
  DistillTeacher teacher;
  teacher.network = load_network(config);
  if (!fs::is_directory(config.weights)) teacher.bytes = int64_t(fs::file_size(config.weights));
  models::Model& model = teacher.network.model;
  teacher.name = model.name;
  if (model.inputs)
    fail_input("--teacher: ", model.name, " takes rows of features, no photographs");
  if (!model.classes && !model.clip)
    fail_input("--teacher: ", config.weights, " has no classifier, so it answers nothing; take a ",
               "fine-tuned checkpoint, or CLIP with --classes");
  if (!model.classes && a.zero_shot.classes.empty())
    fail_input("--teacher: ", model.name, " compares photos with texts; name the classes that it ",
               "shall tell apart: --classes cat,dog,bird");
  if (!model.classes) {
    ZeroShot texts = read_zero_shot(a.zero_shot);
    teacher.network = load_network(config, texts);
    teacher.classes = texts.classes;
    for (const std::string& prompt : texts.templates) teacher.name += concat(", \"", prompt, "\"");
    return teacher;
  }
  if (!a.zero_shot.templates.empty() || !a.zero_shot.vocabulary.empty())
    fail_input("--template and --vocab are for CLIP; ", model.name, " has a classifier of its own");
  teacher.all_classes = model.classes;
  std::vector<std::string> wanted = read_zero_shot(a.zero_shot).classes;
  teacher.classes = a.labels.empty() ? teacher.network.class_names : read_names(a.labels);
  if (!teacher.classes.empty() && int64_t(teacher.classes.size()) != model.classes)
    fail_input("--labels: ", a.labels.empty() ? config.weights : a.labels, " has ",
               teacher.classes.size(), " names, the teacher ", model.classes, " classes");
  if (wanted.empty()) return teacher;
  if (!teacher.classes.empty())
    restrict_to(teacher, wanted);
  else if (int64_t(wanted.size()) == model.classes)
    teacher.classes = wanted;
  else
    fail_input("--classes: ", wanted.size(), " names, but the teacher has ", model.classes,
               " classes and does not name them; give --labels FILE, a name a line");
  return teacher;
}

// A line that is renewed on a terminal, and elsewhere printed every 20 s.
class ProgressLine {
 public:
  void show(const std::string& text) {
    if (Clock::now() < next_) return;
    next_ = Clock::now() + std::chrono::milliseconds(terminal_ ? 200 : 20000);
    std::cout << (terminal_ ? "\r" + text + "\033[K" : text + "\n") << std::flush;
    open_ = terminal_;
  }
  void say(const std::string& text) {
    std::cout << (open_ ? "\r\033[K" : "") << text << std::endl;
    open_ = false;
  }

 private:
  bool terminal_ = ::isatty(STDOUT_FILENO), open_ = false;
  Clock::time_point next_ = Clock::now() + std::chrono::seconds(terminal_ ? 0 : 20);
};

struct DistillJob {
  const DistillArguments& a;
  std::string folder{};
  DistillTeacher teacher{};
  std::vector<StudentChoice> students{};
  data::Dataset photos{}, train{};
  Clock::time_point end = Clock::time_point::max();  // of the training, by --hours
  ProgressLine line{};

  std::string spec(const char* split) const { return concat("unlabeled:", a.images, split); }
  std::string view_file(int64_t view) const {
    return concat(folder, "/teacher-view", view, ".safetensors");
  }
  std::string student_folder(const StudentChoice& s) const { return folder + "/" + s.name; }
  data::Augmentation augmentation(int64_t views) const {
    data::Augmentation augment;
    if (views == 0) return augment;
    augment.flip = true;
    augment.random_resized_crop = 0.3;
    augment.views = views;
    return augment;
  }
  // Of `parts` equal shares of the time that is left the end of the first.
  Clock::time_point share_of_time(int64_t parts) const {
    return a.hours > 0 ? Clock::now() + (end - Clock::now()) / parts : end;
  }
};

// What a folder of the same command holds, so that another one is not mixed with it.
Json identity_of(const DistillJob& job) {
  const DistillArguments& a = job.a;
  return {{"teacher", job.teacher.name},
          {"teacher_sha256", job.teacher.network.weights->hash()},
          {"classes", job.teacher.classes},
          {"photos", job.photos.size()},
          {"photos_sha256", job.photos.hash},
          {"image", a.image},
          {"epochs", a.epochs},
          {"batch", a.batch},
          {"views", a.views},
          {"temperature", a.temperature},
          {"lr", a.lr},
          {"seed", a.seed}};
}

// A value of the job in a message; of a list the beginning.
std::string shortened(const Json& value) {
  if (!value.is_array() || value.size() <= 3)
    return value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return concat(value.size(), " names (", shortened(value[0]), ", ", shortened(value[1]), ", ...)");
}

void require_same_job(const RunFolder& folder, const Json& now) {
  if (!folder.has(kJob))
    return data::write_file(folder.file(kJob),
                            now.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  Json then = Json::parse(read_file(folder.file(kJob)), nullptr, false);
  for (auto& [key, value] : now.items())
    if (!then.is_object() || !then.contains(key) || then[key] != value)
      fail_input("distill: ", folder.path(), " holds another job: its ", key, " was ",
                 then.is_object() && then.contains(key) ? shortened(then[key]) : "not said",
                 " and is ", shortened(value),
                 "; give the same command again, or another --run DIR");
}

// One view of the photos; false when the time was over.
bool look_at(DistillJob& job, int64_t view, int64_t views, const data::Dataset& set,
             Clock::time_point end) {
  if (is_there(job.view_file(view))) return true;
  FeaturePass pass;
  pass.out = job.view_file(view);
  pass.header.teacher = job.teacher.name;
  pass.header.weight_hash = job.teacher.network.weights->hash();
  pass.header.preprocessing = models::describe(job.teacher.network.model.input);
  for (const std::string& name : job.teacher.classes)
    pass.header.class_names += (pass.header.class_names.empty() ? "" : "\n") + name;
  pass.loader.batch = 32;
  pass.loader.workers = int(job.a.workers);
  if (view) {
    pass.loader.augment = job.augmentation(views);
    pass.loader.augment.views = 0;  // drawn as the epoch `view` - 1
    pass.loader.seed = uint64_t(job.a.seed);
    pass.header.view = view;
    pass.header.drawn = data::describe(pass.loader.augment, uint64_t(job.a.seed));
  }
  auto begin = Clock::now();
  pass.progress = [&](int64_t done, int64_t left) {
    double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    double rate = double(done) / std::max(seconds, 1e-9);
    job.line.show(
        concat("teacher, look ", view + 1, " of ", views + 1, ": ", set.size() - left, " of ",
               set.size(), " photos  ", std::llround(rate), " photos/s  left ",
               duration((double(left) + double((views - view) * job.train.size())) / rate)));
  };
  pass.stop = [&] { return interrupted() || Clock::now() > end; };
  if (store_features(job.teacher.network.model, set, pass)) return true;
  if (interrupted()) throw Interrupted("stopped and saved; the same command goes on");
  return false;
}

// How many views of the photos are stored at the end.
int64_t teacher_pass(DistillJob& job) {
  int64_t known = 0;
  while (is_there(job.view_file(known + 1))) known++;
  for (const StudentChoice& student : job.students)
    if (is_there(job.student_folder(student) + "/config.toml"))
      return known;  // others learn from the same views
  int64_t views = job.a.epochs ? std::min(job.a.views, job.a.epochs) : job.a.views;
  job.line.say(concat("teacher ", job.teacher.name, ", ", job.teacher.network.model.classes,
                      " classes: looks at ", counted(job.photos.size(), "photo"), ", ", views + 1,
                      " times at those to train on (less often: --views, --hours)"));
  if (!look_at(job, 0, views, job.photos, job.end))
    fail_input("distill: the teacher has not seen every photo once in ", job.a.hours,
               " hours; give the same command again to go on, or with more --hours");
  Clock::time_point half = job.share_of_time(2);
  for (int64_t view = known + 1; view <= views; view++)
    if (!look_at(job, view, views, job.train, half)) {
      job.line.say(concat("half of the time is over: going on with ", view - 1, " of ", views,
                          " crops of each photo"));
      return view - 1;
    }
  return views;
}

// A student with a classifier of as many classes as the whole teacher's keeps what it knows of
// those that are asked for.
StudentConfig beginning_of(const DistillJob& job, const StudentChoice& student) {
  StudentConfig config = student.config;
  if (config.weights.empty() || is_hf_folder(config.weights)) return config;
  auto file = models::in_our_names(data::open_weights(config.weights));
  std::map<std::string, Tensor> rows;
  for (const char* part : {".weight", ".bias", "_dist.weight", "_dist.bias"})  // DeiT has two
    if (file->has(student.head + part))
      rows[student.head + part] = file->read(student.head + part, DType::f32);
  if (rows.empty() || rows.begin()->second.rank() == 0 ||
      rows.begin()->second.dim(0) != job.teacher.all_classes)
    return config;
  config.head = "keep";
  if (job.teacher.chosen.empty()) return config;
  Tensor chosen = from(job.teacher.chosen, {int64_t(job.teacher.chosen.size())});
  for (auto& [name, value] : rows) value = index_select(value, chosen, 0);
  config.weights = job.student_folder(student) + "-start.safetensors";
  data::convert_weights(*data::amend_weights(file, rows, file->metadata()), config.weights);
  return config;
}

Config student_config(const DistillJob& job, const StudentChoice& student, int64_t views) {
  const DistillArguments& a = job.a;
  Config c;
  c.data.train = job.spec(":train");
  c.data.validation = job.spec(":val");
  c.data.workers = a.workers;
  c.student = beginning_of(job, student);
  TeacherConfig teacher;
  teacher.name = "teacher";
  for (int64_t view = 0; view <= views; view++) teacher.features.push_back(job.view_file(view));
  c.teachers = {teacher};
  methods::Choice kd{"kd", 1.0, {}};
  for (const methods::Option& option : methods::find_method("kd").options)
    kd.options.emplace_back(option.name,
                            option.name == "T" ? methods::Value(a.temperature) : option.value);
  c.methods = {kd};
  c.augment = job.augmentation(views);
  TrainConfig& t = c.train;
  t.ce_weight = 0;
  // Batches of nearly one size: a last one of a few samples would spoil the batch norm's averages.
  int64_t n = job.train.size(), about = a.batch ? a.batch : std::clamp<int64_t>(n / 12, 16, 64),
          batches = (n + about - 1) / about;
  t.batch = (n + batches - 1) / batches;
  t.epochs = a.epochs ? a.epochs : std::clamp<int64_t>(6000 / batches, 20, 200);
  t.optimizer = "adamw";
  t.lr = a.lr > 0 ? a.lr : student.config.weights.empty() ? 2e-3 : 5e-4;
  t.weight_decay = 0.05;
  t.clip_norm = 1;
  t.warmup = double(std::min<int64_t>(t.epochs / 20, 5));
  t.seed = a.seed;
  return c;
}

// As many epochs as the time allows, by the time of a few steps.
void fit_into(Config& config, Clock::time_point end) {
  constexpr int kSteps = 4;
  Trainer trial(config);
  auto begin = Clock::now();
  for (int step = 0; step < 1 + kSteps && !trial.epoch_done(); step++) {
    if (step == 1) begin = Clock::now();
    trial.step();
  }
  int64_t timed = std::max<int64_t>(trial.position().step - 1, 1);
  double step = std::chrono::duration<double>(Clock::now() - begin).count() / double(timed);
  double epoch = 1.15 * step * double(trial.epoch_steps());  // with the photos held out
  double left = std::chrono::duration<double>(end - Clock::now()).count();
  config.train.epochs = std::clamp<int64_t>(int64_t(0.95 * left / epoch), 1, config.train.epochs);
  config.train.warmup = std::min<double>(config.train.warmup, double(config.train.epochs / 20));
}

// False when the time was over.
bool train_student(DistillJob& job, size_t which, int64_t views) {
  const StudentChoice& student = job.students[which];
  std::string folder = job.student_folder(student), stored = folder + "/config.toml";
  Clock::time_point end = job.share_of_time(int64_t(job.students.size() - which));
  Config config = is_there(stored) ? read_config(stored) : student_config(job, student, views);
  if (job.a.hours > 0 && !is_there(stored)) fit_into(config, end);
  if (interrupted()) throw Interrupted("stopped; the same command goes on");
  RunOptions options;
  options.folder = folder;
  options.resume = is_there(stored);
  options.threads = job.a.threads;
  options.time_is_over = [end] { return Clock::now() > end; };
  try {
    return run(config, options);
  } catch (const Interrupted&) {
    throw Interrupted("stopped and saved; the same command goes on");
  }
}

std::string stem_of(const DistillArguments& a) { return a.out.substr(0, a.out.size() - 5); }

void write_report(DistillJob& job, const std::vector<bool>& finished, int64_t views) {
  const DistillArguments& a = job.a;
  data::Dataset held_out = data::open_dataset(job.spec(":val"));
  DistillReport report;
  report.teacher = job.teacher.name;
  report.images = a.images;
  report.classes = job.teacher.classes;
  report.teacher_logits = job.view_file(0);
  report.teacher_parameters = job.teacher.network.store->count();
  report.teacher_bytes = job.teacher.bytes;
  report.teacher_milliseconds = milliseconds_of(job.teacher.network.model);
  report.views = views;
  report.photos = job.photos.size();
  report.trained_on = job.train.size();
  std::string pictures;
  for (size_t i = 0; i < job.students.size(); i++) {
    StudentRow row;
    row.name = job.students[i].name;
    row.run = job.student_folder(job.students[i]);
    row.finished = finished[i];
    std::string stem = stem_of(a) + (job.students.size() > 1 ? "-" + row.name : "");
    row.weights = stem + ".safetensors";
    // A tenth of some hundred photos chooses among epochs by chance: the end of the schedule is
    // taken, unless it was not reached.
    data::write_file(row.weights, read_file(row.finished ? row.run + "/last.safetensors"
                                                         : best_checkpoint(row.run)));
    row.weights_bytes = int64_t(fs::file_size(row.weights));
    Network student = load_network(parse_network(row.weights));
    row.onnx = stem + ".onnx";
    export_onnx(row.onnx, student.model, *student.store, {.class_names = report.classes});
    row.onnx_bytes = int64_t(fs::file_size(row.onnx));
    pictures += measure(student, row, report, held_out);
    report.students.push_back(row);
  }
  data::write_file(job.folder + "/report.json", json_of(report));
  data::write_file(stem_of(a) + ".html", page_of(report, pictures));
  std::cout << table_of(report);
  for (const StudentRow& row : report.students)
    std::cout << "wrote " << row.weights << ", " << row.onnx << "\n";
  std::cout << "wrote " << stem_of(a)
            << ".html: the photos on which student and teacher differ most" << std::endl;
}

void distill(DistillArguments a) {
  auto begin = Clock::now();
  use_threads(std::max(a.threads, 0));
  if (!a.out.ends_with(".onnx") || fs::path(a.out).stem().empty())
    fail_input("--out ", a.out, ": the name of the classifier must end in .onnx, as student.onnx");
  std::error_code error;
  if (fs::path parent = fs::path(a.out).parent_path(); !parent.empty())
    fs::create_directories(parent, error);
  { data::FileWriter probe(a.out); }  // an unwritable folder is known at once, not after hours
  DistillJob job{a};
  job.folder = a.folder.empty() ? stem_of(a) + ".run" : a.folder;
  job.students = students_of(a);
  job.teacher = open_teacher(a);
  if (job.teacher.classes.size() == 1)
    fail_input("--classes: only \"", data::printable(job.teacher.classes[0]), "\"; a classifier ",
               "tells at least two apart, as cat,dog or the lines of a file");
  job.photos = data::open_dataset(job.spec(""));
  if (job.photos.size() < kFewestPhotos)
    fail_input("--images: ", a.images, " has ", counted(job.photos.size(), "photo"),
               "; a student needs at least ", kFewestPhotos, ", and some hundreds to learn much");
  int64_t classes = job.teacher.network.model.classes;
  if (job.photos.size() < kFewPhotos)
    std::cerr << "pupil: warning: only " << job.photos.size()
              << " photos; some hundreds make a much better student\n";
  if (job.photos.size() < kFewOfAClass * classes)
    std::cerr << "pupil: warning: " << job.photos.size() << " photos of " << classes
              << " classes; --classes a,b,c takes those that your photos show\n";
  job.train = data::open_dataset(job.spec(":train"));
  if (a.hours > 0)  // some of it for the report
    job.end = begin + std::chrono::duration_cast<Clock::duration>(
                          std::chrono::duration<double>(3600 * a.hours * 0.97));

  RunFolder folder(job.folder, true, kJob);
  try {
    require_same_job(folder, identity_of(job));
    Signals signals;
    int64_t views = teacher_pass(job);
    std::vector<bool> finished;
    for (size_t i = 0; i < job.students.size(); i++)
      finished.push_back(train_student(job, i, views));
    write_report(job, finished, views);
  } catch (const InputError&) {
    if (!is_there(job.view_file(0)) && !is_there(job.view_file(0) + ".partial")) folder.discard();
    throw;
  }
}

}  // namespace

void add_distill_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("distill", "photographs and a teacher in, a small classifier out");
  command->footer(
      "Examples:\n"
      "  pupil distill --teacher vit_tiny_patch16_224.safetensors --labels imagenet1k_label.txt "
      "\\\n"
      "    --images photos --student mobilenetv3_small --out student.onnx --hours 2\n"
      "  pupil distill --teacher ViT-B-32.pt --classes cat,dog,bird --images photos \\\n"
      "    --students mobilenetv3_small,shufflenet_v2_x1_0,resnet18 --out pets.onnx\n"
      "Photos need no labels. A run that was stopped goes on with the same command.");
  auto a = std::make_shared<DistillArguments>();
  command
      ->add_option("--teacher", a->teacher,
                   "a checkpoint, or NAME=FILE where the file does not tell its network")
      ->required();
  command->add_option("--images", a->images, "a folder of PNG and JPEG files, at any depth")
      ->required();
  auto* students = command->add_option("--student,--students", a->students,
                                       "networks to train, A,B,C; NAME=FILE begins with weights");
  students->required()->allow_extra_args(false);
  command->add_option("--out", a->out, "student.onnx; .safetensors and .html are written beside it")
      ->required();
  add_zero_shot_options(*command, a->zero_shot);
  command->get_option("--classes")
      ->description(
          "a,b,c, or a file with one name a line: what CLIP shall tell apart, or some of the "
          "classes of another teacher");
  command->add_option("--labels", a->labels,
                      "names of the teacher's classes, one a line (default: what its file says)");
  command
      ->add_option("--hours", a->hours,
                   "of this call; too few of them: the best student so far is kept")
      ->check(CLI::Range(1e-6, 1e4));
  command->add_option("--run", a->folder, "folder of the work (default: OUT with .run)");
  command->add_option("--epochs", a->epochs, "at most (default: some 6000 steps, 20 to 200 epochs)")
      ->check(CLI::Range(0, 1000000));
  command
      ->add_option(
          "--views", a->views,
          "crops of each photo that the teacher looks at, at most one for each epoch; with fewer, "
          "epochs show the same crops again")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000));
  command->add_option("--image", a->image, "side of the student's input (0: its own)")
      ->check(CLI::Range(0, 4096));
  command->add_option("--temperature", a->temperature, "T of the distillation")
      ->capture_default_str()
      ->check(CLI::Range(1e-3, 1e3));
  command->add_option("--lr", a->lr, "learning rate (default: 2e-3, with weights 5e-4)");
  command->add_option("--batch", a->batch, "photos in a step, about (0: 16 to 64, by their number)")
      ->check(CLI::Range(0, 1000000));
  command->add_option("--seed", a->seed, "of weights, order and crops")
      ->check(CLI::Range(int64_t(0), std::numeric_limits<int64_t>::max()));
  command->add_option("--workers", a->workers, "threads that decode photos")
      ->capture_default_str()
      ->check(CLI::Range(0, 64));
  add_threads_option(*command, a->threads);
  command->callback([a] { distill(*a); });
}

}  // namespace pupil
