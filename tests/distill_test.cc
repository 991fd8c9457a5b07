// pupil distill: from a folder of photos and a teacher to students, and whatever happens on the
// way.
#include <nlohmann/json.hpp>

#include "data/convert.h"
#include "models/clip.h"
#include "tests/clip_vocabulary.h"
#include "tests/data_files.h"
#include "tests/program.h"
#include "tools/hf_write.h"
#include "tools/recognise.h"
#include "tools/run_folder.h"

namespace pupil::test {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kSmall = "vit(dim=8,depth=1,heads=2,patch=8,image=16)";
constexpr const char* kSmaller = "vit(dim=4,depth=1,heads=1,patch=8,image=16)";

// Three classes of photos that differ in their strongest channel, and a teacher that learned them.
struct DistillTest : testing::Test {
  TemporaryFolder folder;

  static data::Image photo(int colour, uint64_t seed) {
    data::Image image = noise_image(20, 18, 3, seed);
    for (size_t i = 0; i < image.pixels.size(); i++)
      image.pixels[i] = uint8_t(image.pixels[i] / 3 + (int(i % 3) == colour ? 70 : 0));
    return image;
  }

  void SetUp() override {
    const char* names[] = {"red", "green", "blue"};
    for (int i = 0; i < 90; i++) {
      std::string in = concat("photos/", names[i % 3]);
      fs::create_directories(folder / in);
      write_bytes(folder / concat(in, "/", i, ".png"), png(photo(i % 3, uint64_t(i))));
    }
    write_text(folder / "teacher.toml", R"toml([data]
train = "folder:photos"
validation_share = 0.1
[student]
model = "vit(dim=16,depth=1,heads=2,patch=8,image=16)"
[train]
epochs = 6
batch = 10
optimizer = "adam"
lr = 0.01
)toml");
    Outcome taught = run_program({"train", "teacher.toml", "--run", "teacher"}, folder);
    ASSERT_EQ(taught.code, 0) << taught.err;
    fs::copy_file(folder / "teacher/last.safetensors", folder / "teacher.safetensors");
  }

  static std::vector<std::string> command(const std::string& out = "out/student.onnx",
                                          const std::string& students = kSmall) {
    return {"distill",  "--teacher", "teacher.safetensors",
            "--images", "photos",    "--student",
            students,   "--out",     out,
            "--epochs", "8",         "--views",
            "3",        "--batch",   "16",
            "--lr",     "0.02",      "--threads",
            "1"};
  }
  Outcome distill(std::vector<std::string> arguments, std::vector<std::string> more = {}) {
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments, folder);
  }
  void refused(std::vector<std::string> arguments, std::initializer_list<std::string> words) {
    Outcome outcome = run_program(arguments, folder);
    EXPECT_EQ(outcome.code, 2) << outcome.out << outcome.err;
    for (const std::string& word : words)
      EXPECT_NE(outcome.err.find(word), std::string::npos) << word << ": " << outcome.err;
  }
  // The first answer to each photo.
  std::map<std::string, int> answers(const std::string& weights) {
    Outcome outcome = run_program({"predict", "--weights", weights, "photos", "--json"}, folder);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    std::map<std::string, int> all;
    for (const json& photo : json::parse(outcome.out))
      all[photo["file"]] = photo["top"][0]["class"];
    return all;
  }
};

std::vector<std::string> replaced(std::vector<std::string> arguments, const std::string& key,
                                  const std::string& value) {
  *(std::find(arguments.begin(), arguments.end(), key) + 1) = value;
  return arguments;
}

TEST_F(DistillTest, TrainsStudentsWhoseReportAnotherPathConfirms) {
  Outcome outcome = distill(command("out/student.onnx", concat(kSmall, ",", kSmaller)));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  json report = json::parse(read_text(folder / "out/student.run/report.json"));
  EXPECT_EQ(report["photos"], 90);
  EXPECT_EQ(report["trained_on"], 81);
  EXPECT_EQ(report["labelled"], 9);
  EXPECT_EQ(report["teacher_bytes"], fs::file_size(folder / "teacher.safetensors"));
  EXPECT_GT(report["teacher_milliseconds"], 0);
  EXPECT_NE(outcome.out.find("one photo is 11.1 points"), std::string::npos) << outcome.out;
  ASSERT_EQ(report["students"].size(), 2u);
  std::map<std::string, int> teacher = answers("teacher.safetensors");
  for (const json& student : report["students"]) {
    std::map<std::string, int> own = answers(student["weights"]);
    std::istringstream csv(read_text(
        folder / concat("out/student.run/", student["name"].get<std::string>(), "/held_out.csv")));
    std::string line;
    std::getline(csv, line);
    int held_out = 0, same = 0, right = 0;
    const char* names[] = {"blue", "green", "red"};
    while (std::getline(csv, line)) {
      std::string path = line.substr(0, line.find(','));
      held_out++;
      same += own.at(path) == teacher.at(path);
      right += path.find(names[own.at(path)]) != path.npos;
    }
    EXPECT_EQ(held_out, 9);
    EXPECT_NEAR(student["agreement"], same / 9.0, 1e-9);
    EXPECT_NEAR(student["accuracy"], right / 9.0, 1e-9);
    EXPECT_GT(student["milliseconds"], 0);
    EXPECT_EQ(read_text(folder / student["weights"].get<std::string>()),
              read_text(folder / concat("out/student.run/", student["name"].get<std::string>(),
                                        "/last.safetensors")));  // chosen by no photo
    EXPECT_EQ(student["weights_bytes"],
              fs::file_size(folder / student["weights"].get<std::string>()));
  }
  EXPECT_GT(report["students"][0]["agreement"], 0.7);
  EXPECT_GT(report["students"][0]["agreement"], report["students"][0]["first_agreement"]);
  std::string page = read_text(folder / "out/student.html");
  for (const char* part : {"data:image/jpeg;base64,/9j/", "dim=8", "dim=4", "<svg", "differ most"})
    EXPECT_NE(page.find(part), std::string::npos) << part;
  EXPECT_EQ(page.find("</html>"), page.size() - 8);
  EXPECT_NE(outcome.out.find("agreement %"), std::string::npos) << outcome.out;

  // The same command again: finished, the same bytes. One more student: the teacher rests.
  std::string weights = concat("out/student-", kSmall, ".safetensors");
  std::string before = read_text(folder / weights);
  fs::remove(folder / weights);
  ASSERT_EQ(distill(command("out/student.onnx", concat(kSmall, ",", kSmaller))).code, 0);
  EXPECT_EQ(read_text(folder / weights), before);
  auto seen = fs::last_write_time(folder / "out/student.run/teacher-view0.safetensors");
  Outcome more =
      distill(command("out/student.onnx", "vit(dim=6,depth=1,heads=1,patch=8,image=16)"));
  EXPECT_EQ(more.code, 0) << more.err;
  EXPECT_EQ(fs::last_write_time(folder / "out/student.run/teacher-view0.safetensors"), seen);
  EXPECT_TRUE(fs::exists(folder / "out/student.safetensors"));
}

// What the teacher is asked for as a view is what the student sees in that epoch: the stored
// answers are those of a live teacher.
TEST_F(DistillTest, StoredViewsAreTheAnswersOfALiveTeacher) {
  ASSERT_EQ(distill(replaced(command(), "--batch", "81")).code, 0);
  std::string stored = concat("out/student.run/", kSmall);
  std::string config = read_text(folder / (stored + "/config.toml"));
  size_t begin = config.find("features = ["), end = config.find(']', begin) + 1;
  config.replace(begin, end - begin, "weights = \"teacher.safetensors\"");
  config.erase(config.find("weights = \"\"", config.find("[[teacher]]")), 12);
  config.replace(config.find("unlabeled:photos:train"), 22, "folder:photos");
  config.replace(config.find("unlabeled:photos:val"), 20, "");
  config.replace(config.find("patience = "), 13, "patience = 0#");
  write_text(folder / "live.toml", config);
  write_text(folder / "live2.toml", read_text(folder / (stored + "/config.toml")));
  Outcome live = run_program({"train", "live.toml", "--run", "live", "--trace", "1,3"}, folder);
  ASSERT_EQ(live.code, 0) << live.err << config;
  Outcome again = run_program({"train", "live2.toml", "--run", "again", "--trace", "1,2"}, folder);
  ASSERT_EQ(again.code, 0) << again.err;
  // Rows of the two runs differ (one holds photos back), so they are found by their pixels.
  int matched = 0;
  for (auto [step, of_again] : {std::pair{1, 1}, {3, 2}}) {  // where epochs 1 and 2 begin
    auto a = data::open_safetensors(folder / concat("live/trace-", step, ".safetensors")),
         b = data::open_safetensors(folder / concat("again/trace-", of_again, ".safetensors"));
    Tensor xa = a->read("batch.x", DType::f32), xb = b->read("batch.x", DType::f32),
           ta = a->read("teacher.teacher.logits", DType::f32),
           tb = b->read("teacher.teacher.logits", DType::f32);
    int64_t pixels = xa.numel() / xa.dim(0);
    for (int64_t i = 0; i < xa.dim(0); i++)
      for (int64_t j = 0; j < xb.dim(0); j++)
        if (!memcmp(xa.data<float>() + i * pixels, xb.data<float>() + j * pixels,
                    size_t(pixels) * 4)) {
          matched++;
          for (int c = 0; c < 3; c++)
            EXPECT_NEAR(ta.data<float>()[i * 3 + c], tb.data<float>()[j * 3 + c], 1e-4);
        }
  }
  EXPECT_GT(matched, 100);
}

TEST_F(DistillTest, KilledOrStoppedTheSameCommandGoesOnToTheSameBytes) {
  ASSERT_EQ(distill(command("whole.onnx")).code, 0);
  std::string expected = read_text(folder / "whole.safetensors");
  std::string student = concat("cut.run/", kSmall);
  for (const std::string& file : {std::string("cut.run/teacher-view0.safetensors"),
                                  std::string("cut.run/teacher-view2.safetensors"),
                                  student + "/config.toml", student + "/best.safetensors"}) {
    Process process(command("cut.onnx"), folder);
    ASSERT_TRUE(process.wait_for(folder / file)) << file << process.wait().err;
    bool kill = file.find("view") != file.npos;
    process.send(kill ? SIGKILL : SIGINT);
    Outcome outcome = process.wait();
    if (kill) continue;
    EXPECT_EQ(outcome.code, 130) << outcome.out << outcome.err;
    EXPECT_NE(outcome.err.find("the same command goes on"), std::string::npos) << outcome.err;
  }
  Outcome end = distill(command("cut.onnx"));
  ASSERT_EQ(end.code, 0) << end.err;
  EXPECT_EQ(read_text(folder / "cut.safetensors"), expected);
}

TEST_F(DistillTest, HoursEndItWithTheBestStudentKept) {
  auto arguments = replaced(command(), "--epochs", "100000");
  auto begin = std::chrono::steady_clock::now();
  Outcome outcome = distill(arguments, {"--hours", "0.001"});
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_LT(seconds, 30);
  EXPECT_TRUE(fs::exists(folder / "out/student.safetensors"));
  EXPECT_TRUE(fs::exists(folder / "out/student.html"));
  json report = json::parse(read_text(folder / "out/student.run/report.json"));
  bool finished = report["students"][0]["finished"];
  std::string stored = concat("out/student.run/", kSmall);
  EXPECT_EQ(outcome.out.find("also chose the epoch") == std::string::npos, finished);
  EXPECT_EQ(read_text(folder / "out/student.safetensors"),
            read_text(finished ? folder / concat(stored, "/last.safetensors")
                               : best_checkpoint(folder / stored)));

  // Too little for the teacher alone; what it has done is kept.
  refused(
      [&] {
        auto short_one = replaced(arguments, "--out", "short.onnx");
        short_one.insert(short_one.end(), {"--hours", "0.000001"});
        return short_one;
      }(),
      {"has not seen every photo once", "again"});
  EXPECT_EQ(distill(replaced(command(), "--out", "short.onnx")).code, 2);  // another --epochs
}

TEST_F(DistillTest, SomeOfTheTeachersClasses) {
  Outcome outcome = distill(command(), {"--classes", "Red, green"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  auto student = data::open_weights(folder / "out/student.safetensors");
  EXPECT_EQ(student->metadata().at("labels"), "Red\ngreen");
  EXPECT_EQ(student->metadata().at("classes"), "2");
  json report = json::parse(read_text(folder / "out/student.run/report.json"));
  EXPECT_LT(report["labelled"], 9);
  refused(
      [&] {
        auto other = command("b.onnx");
        other.insert(other.end(), {"--classes", "red,gren"});
        return other;
      }(),
      {"no class \"gren\"", "green"});
  refused(command("out/student.onnx"), {"another job", "classes", "--run"});
}

// A CLIP of random weights, as transformers keeps one.
TEST_F(DistillTest, ClipTellsApartWhatIsOnlyNamed) {
  Network clip;
  clip.store = std::make_unique<nn::Store>(1);
  models::ClipConfig c;
  c.image = 16, c.patch = 8, c.context = 12, c.embed_dim = 6;
  c.vision = c.text = {.width = 8, .hidden = 16, .heads = 2, .layers = 1};
  clip.model = models::make_clip(c, nn::Scope(*clip.store)).image;
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const nn::Param& p : clip.store->params()) tensors.emplace_back(p.name, p.value);
  data::save_safetensors(folder / "clip.safetensors", tensors);
  data::convert_weights(*in_form_of_hf(clip, data::open_weights(folder / "clip.safetensors")),
                        folder / "clip");
  auto arguments = replaced(command(), "--teacher", "clip");
  refused(arguments, {"texts", "--classes cat,dog,bird"});
  arguments.insert(arguments.end(), {"--classes", "red,green,blue"});
  refused(arguments, {"vocabulary"});
  write_text(folder / "clip/merges.txt", clip_vocabulary("r e\nre d</w>\n"));
  arguments.insert(arguments.end(), {"--template", "a {} wall", "--template", "{}"});
  Outcome outcome = distill(arguments);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  json report = json::parse(read_text(folder / "out/student.run/report.json"));
  EXPECT_EQ(report["labelled"], 9);
  EXPECT_NE(report["teacher"].get<std::string>().find("a {} wall"), std::string::npos);
  EXPECT_EQ(data::open_weights(folder / "out/student.safetensors")->metadata().at("labels"),
            "red\ngreen\nblue");
}

TEST_F(DistillTest, BadInputIsNamed) {
  write_text(folder / "notes.txt", "hello");
  fs::create_directories(folder / "none");
  fs::create_directories(folder / "three");
  for (int i = 0; i < 3; i++)
    write_bytes(folder / concat("three/", i, ".png"), png(photo(i, uint64_t(i))));
  refused(replaced(command(), "--teacher", "absent.pth"), {"absent.pth"});
  refused(replaced(command(), "--teacher", "notes.txt"), {"notes.txt"});
  refused(replaced(command(), "--teacher", "resnet18=teacher.safetensors"),
          {"teacher.safetensors", "missing"});
  refused(replaced(command(), "--images", "none"), {"none", "no PNG or JPEG"});
  refused(replaced(command(), "--images", "nowhere"), {"no folder nowhere"});
  refused(replaced(command(), "--images", "three"), {"3 photos", "at least 10"});
  refused(replaced(command(), "--student", "resnet19"), {"resnet19", "did you mean"});
  refused(replaced(command(), "--student", concat(kSmall, ",", kSmall)), {"twice"});
  refused(replaced(command(), "--student", "mlp(inputs=3)"), {"no photographs"});
  refused(replaced(command(), "--out", "student.pt"), {".onnx"});
  auto with = [](std::vector<std::string> arguments, std::vector<std::string> more) {
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  };
  refused(replaced(command(), "--student", "mobilenetv3_smal"),
          {"did you mean mobilenetv3_small?"});
  refused(replaced(command(), "--student", "some/net.pth"), {"some/net.pth", "no such file"});
  refused(replaced(command(), "--student", "notes.txt"), {"notes.txt", "not a safetensors file"});
  refused(with(command(), {"--hour", "2"}), {"unknown option --hour", "did you mean --hours?"});
  refused(with(command(), {"--classes", "red,green,Red"}),
          {"\"red\" and \"Red\" are one class of the teacher"});
  refused(with(command(), {"--classes", "red"}), {"only \"red\"", "at least two"});
  refused(with(command(), {"--template", "a {}"}), {"for CLIP"});
  refused(with(command(), {"--labels", "notes.txt"}), {"1 names", "3 classes"});
  EXPECT_FALSE(fs::exists(folder / "out/student.run"));

  // A broken photo is named and left out; the disk is full: nothing half-written counts.
  write_bytes(folder / "photos/red/broken.jpg", {0xff, 0xd8, 0xff, 0xe0});
  Process process(command(), folder, 3000);
  Outcome full = process.wait();
  EXPECT_NE(full.code, 0) << full.out << full.err;
  EXPECT_NE(full.err.find("pupil: warning: skipped photos/red/broken.jpg"), std::string::npos)
      << full.err;
  Outcome outcome = distill(command());
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  json report = json::parse(read_text(folder / "out/student.run/report.json"));
  EXPECT_EQ(report["photos"], 90);
}

// What another job's list was is told by its beginning.
TEST_F(DistillTest, AnotherJobIsToldInOneLine) {
  nn::Store store(3);
  models::make_model("resnet8_kd", nn::Scope(store), {.classes = 400});
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const nn::Param& p : store.params()) tensors.emplace_back(p.name, p.value);
  data::save_safetensors(folder / "many.safetensors", tensors, {{"model", "resnet8_kd"}});
  std::string names;
  for (int i = 0; i < 400; i++) names += concat("kind ", i, "\n");
  write_text(folder / "names.txt", names);
  auto arguments = replaced(command(), "--teacher", "many.safetensors");
  arguments.insert(arguments.end(), {"--labels", "names.txt"});
  Outcome outcome = distill(replaced(arguments, "--epochs", "1"));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("90 photos of 400 classes"), std::string::npos) << outcome.err;
  arguments.insert(arguments.end(), {"--classes", "kind 3,kind 5"});
  Outcome other = distill(replaced(arguments, "--epochs", "1"));
  EXPECT_EQ(other.code, 2);
  EXPECT_NE(other.err.find("classes was 400 names (\"kind 0\", \"kind 1\", ...) and is "
                           "[\"kind 3\",\"kind 5\"]"),
            std::string::npos)
      << other.err;
}

TEST_F(DistillTest, StudentsBeginWithWeights) {
  nn::Store store(3);
  models::make_model("resnet8_kd", nn::Scope(store), {.classes = 5});
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const nn::Param& p : store.params()) tensors.emplace_back(p.name, p.value);
  data::save_safetensors(folder / "resnet8.safetensors", tensors, {{"model", "resnet8_kd"}});
  auto arguments = replaced(command(), "--student", "resnet8.safetensors");  // says what it is
  Outcome outcome = distill(replaced(arguments, "--epochs", "2"));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  std::string config = read_text(folder / "out/student.run/resnet8_kd/config.toml");
  EXPECT_NE(config.find("head = \"new\""), std::string::npos) << config;
  EXPECT_EQ(data::open_weights(folder / "out/student.safetensors")->metadata().at("classes"), "3");
}

// With a classifier of the teacher's classes it begins with the rows of those that are asked for.
TEST_F(DistillTest, StudentsKeepWhatTheyKnowOfTheTeachersClasses) {
  nn::Store store(3);
  models::make_model("resnet8_kd", nn::Scope(store), {.classes = 3});
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const nn::Param& p : store.params()) tensors.emplace_back(p.name, p.value);
  data::save_safetensors(folder / "resnet8.safetensors", tensors, {{"model", "resnet8_kd"}});
  auto arguments =
      replaced(replaced(command(), "--student", "resnet8_kd=resnet8.safetensors"), "--epochs", "1");
  ASSERT_EQ(distill(arguments, {"--classes", "red,blue"}).code, 0);
  auto whole = data::open_weights(folder / "resnet8.safetensors"),
       begun = data::open_weights(folder / "out/student.run/resnet8_kd-start.safetensors");
  Tensor all = whole->read("fc.weight", DType::f32);  // blue, green, red
  EXPECT_EQ(begun->read("fc.weight", DType::f32).values(),
            cat({slice(all, 0, 2, 3), slice(all, 0, 0, 1)}, 0).values());
  EXPECT_EQ(begun->read("fc.bias", DType::f32).shape(), Shape{2});
  EXPECT_EQ(data::open_weights(folder / "out/student.safetensors")->metadata().at("classes"), "2");

  ASSERT_EQ(distill(replaced(arguments, "--out", "b.onnx")).code, 0);
  std::string config = read_text(folder / "b.run/resnet8_kd/config.toml");
  EXPECT_NE(config.find("head = \"keep\""), std::string::npos) << config;
  EXPECT_FALSE(fs::exists(folder / "b.run/resnet8_kd-start.safetensors"));
}

TEST(Unlabeled, TrainingNeedsATeachersAnswers) {
  TemporaryFolder folder;
  fs::create_directories(folder / "photos");
  for (int i = 0; i < 12; i++)
    write_bytes(folder / concat("photos/", i, ".png"), png(noise_image(8, 8, 3, uint64_t(i))));
  write_text(folder / "c.toml",
             "[data]\ntrain = \"unlabeled:photos\"\n[student]\nmodel = \"resnet8_kd\"\n"
             "[train]\nepochs = 1\nbatch = 4\n");
  Outcome outcome = run_program({"train", "c.toml"}, folder);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("no labels"), std::string::npos) << outcome.err;
}

TEST(Recognise, ByNamesAndShapesAndTheNameOfTheFile) {
  TemporaryFolder folder;
  auto save = [&](const std::string& model, const std::string& file, const std::string& said,
                  int64_t classes) {
    nn::Store plan = nn::Store::blueprint();
    models::make_model(model, nn::Scope(plan), {.classes = classes});
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const nn::Param& p : plan.params())
      if (!(p.buffer && p.value.rank() == 0)) tensors.emplace_back(p.name, zeros(p.value.shape()));
    std::map<std::string, std::string> metadata;
    if (!said.empty()) metadata["model"] = said;
    data::save_safetensors(folder / file, tensors, metadata);
    return recognise(*data::open_weights(folder / file));
  };
  EXPECT_EQ(save("resnet20_cifar", "a.safetensors", "", 7), "resnet20_cifar");
  EXPECT_EQ(save("mobilenetv3_small", "b.safetensors", "MobileNetV3, small", 12),
            "mobilenetv3_small_100");
  EXPECT_EQ(save("resnet20_cifar", "c.safetensors", "resnet20_cifar", 7), "resnet20_cifar");
  EXPECT_EQ(save("deit_tiny_patch16_224", "my_deit_tiny_patch16_224-1a2b.safetensors", "", 10),
            "deit_tiny_patch16_224");
  expect_refused([&] { save("deit_tiny_patch16_224", "net.safetensors", "", 10); },
                 {"net.safetensors", "several", "vit_tiny_patch16_224", "deit_tiny_patch16_224"});
  data::save_safetensors(folder / "d.safetensors", {{"fc.weight", zeros({3, 4})}});
  expect_refused([&] { recognise(*data::open_weights(folder / "d.safetensors")); },
                 {"d.safetensors", "no network", "pupil models"});
}

}  // namespace
}  // namespace pupil::test
