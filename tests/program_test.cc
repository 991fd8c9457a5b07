// The program as a person uses it: help, init, train, eval, report, info.
#include "program.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "models/models.h"
#include "tools/config.h"

namespace pupil::test {
namespace {

using Json = nlohmann::json;

TEST(Program, HelpAndVersion) {
  TemporaryFolder folder;
  Outcome help = run_program({"--help"}, folder);
  EXPECT_EQ(help.code, 0);
  EXPECT_EQ(help.err, "");
  EXPECT_EQ(run_program({"--version"}, folder).out.rfind("pupil ", 0), 0u);
  for (const char* command :
       {"init", "train", "eval", "models", "verify", "features", "report", "info"}) {
    EXPECT_NE(help.out.find(std::string("\n  ") + command), std::string::npos) << command;
    Outcome own = run_program({command, "--help"}, folder);
    EXPECT_EQ(own.code, 0) << command;
    EXPECT_NE(own.out.find("Example"), std::string::npos) << command;
    EXPECT_NE(own.out.find(std::string("  pupil ") + command), std::string::npos) << command;
  }
}

TEST(Program, InfoAsJson) {
  TemporaryFolder folder;
  Json j = Json::parse(run_program({"info", "--json"}, folder).out);
  EXPECT_GE(j.at("threads").get<int>(), 1);
  EXPECT_EQ(j.at("cuda"), false);
}

struct Trained : testing::Test {
  TemporaryFolder folder;
  void SetUp() override {
    write_images(folder / "data", "train", 96);
    write_images(folder / "data", "test", 40);
    write_text(folder / "config.toml", tiny_config());
  }
  Outcome train(const std::string& run, std::vector<std::string> settings = {}) {
    std::vector<std::string> arguments{"train", "config.toml", "--run", run, "--threads", "2"};
    for (std::string& s : settings) {
      arguments.push_back("--set");
      arguments.push_back(s);
    }
    Outcome outcome = run_program(arguments, folder);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    return outcome;
  }
  std::vector<Json> metrics(const std::string& run) {
    std::vector<Json> lines;
    std::istringstream text(read_text(folder / (run + "/metrics.jsonl")));
    for (std::string line; std::getline(text, line);) lines.push_back(Json::parse(line));
    return lines;
  }
};

TEST_F(Trained, InitIsAcceptedAsItIs) {
  train("teacher");
  Outcome init = run_program(
      {"init", "--student", "vit(dim=16,depth=1,heads=2,patch=4,image=8)", "--data", "npy:data",
       "--teacher", "teacher/best.safetensors", "--method", "kd", "--method", "aft"},
      folder);
  ASSERT_EQ(init.code, 0) << init.err;
  write_text(folder / "config.toml", init.out);
  Outcome outcome = train("kd", {"train.epochs=2", "train.batch=8"});
  EXPECT_NE(outcome.out.find("kd "), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("aft "), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("images/s"), std::string::npos) << outcome.out;
}

// What torchvision publishes of its own, in units of 1e9.
TEST(Program, ModelsCountMultiplications) {
  TemporaryFolder folder;
  for (auto [name, published] : {std::pair{"resnet18", 1.81},
                                 {"mobilenet_v2", 0.30},
                                 {"efficientnet_b0", 0.39},
                                 {"shufflenet_v2_x1_0", 0.14},
                                 {"vit_base_patch16_224", 17.56}}) {
    Outcome out = run_program({"models", name, "--classes", "1000", "--json"}, folder);
    ASSERT_EQ(out.code, 0) << out.err;
    EXPECT_NEAR(Json::parse(out.out)["macs"].get<double>() / 1e9, published, 0.0051) << name;
  }
  Outcome all = run_program({"models", "--json"}, folder);
  ASSERT_EQ(all.code, 0) << all.err;
  for (const Json& model : Json::parse(all.out))
    EXPECT_GT(model["macs"].get<double>(), 1000) << model;
}

// Data without a test part, a teacher named by its run, and one by its stored features.
TEST_F(Trained, InitNamesWhatIsThere) {
  train("teacher");
  auto init = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments{"init", "--student", "resnet8_kd"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    Outcome outcome = run_program(arguments, folder);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return parse_config(outcome.out, "init");
  };
  const std::string files = "npy:data/train_images.npy+data/train_labels.npy";
  Config config = init({"--data", files, "--teacher", "teacher", "--method", "kd"});
  EXPECT_EQ(config.data.train, files);
  EXPECT_EQ(config.data.test, "");
  EXPECT_EQ(config.teachers.at(0).weights, "teacher/best.safetensors");
  std::filesystem::create_directories(folder / "photos/cat");
  EXPECT_EQ(init({"--data", "folder:photos"}).data.test, "");
  std::filesystem::create_directories(folder / "photos/test");
  EXPECT_EQ(init({"--data", "folder:photos"}).data.test, "folder:photos:test");
  EXPECT_EQ(init({"--data", "cifar10:later"}).data.train, "cifar10:later:train");
  ASSERT_EQ(run_program({"features", "--teacher", "teacher/best.safetensors", "--data",
                         "npy:data:train", "--out", "f.safetensors"},
                        folder)
                .code,
            0);
  config = init({"--data", "npy:data", "--teacher", "f.safetensors", "--method", "kd"});
  EXPECT_EQ(config.teachers.at(0).features, std::vector<std::string>{"f.safetensors"});
  EXPECT_EQ(config.teachers.at(0).weights, "");
}

// A run that reads stored logits is the run that asks the teacher itself.
TEST_F(Trained, StoredFeaturesAreTheTeacher) {
  train("teacher");
  Outcome init =
      run_program({"init", "--student", "vit(dim=16,depth=1,heads=2,patch=4,image=8)", "--data",
                   "npy:data", "--teacher", "teacher/best.safetensors", "--method", "kd"},
                  folder);
  ASSERT_EQ(init.code, 0) << init.err;
  write_text(folder / "config.toml", init.out);
  auto features = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments{"features", "--teacher", "teacher/best.safetensors",
                                       "--threads", "2"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments, folder);
  };
  Outcome stored = features({"--data", "npy:data:train", "--out", "f.safetensors"});
  ASSERT_EQ(stored.code, 0) << stored.err;
  EXPECT_NE(stored.out.find("96 of 96 samples"), std::string::npos) << stored.out;
  std::vector<std::string> settings{"train.epochs=2", "train.batch=8"};
  train("live", settings);
  for (const char* more :
       {"teacher.0.model=", "teacher.0.weights=", "teacher.0.features=[\"f.safetensors\"]"})
    settings.push_back(more);
  train("stored", settings);
  std::vector<Json> live = metrics("live"), from_file = metrics("stored");
  ASSERT_EQ(live.size(), from_file.size());
  for (size_t i = 0; i < 2;
       i++) {  // another batch size may round the teacher's last bits otherwise
    double a = live[i]["train"]["loss"], b = from_file[i]["train"]["loss"];
    EXPECT_NEAR(a, b, 1e-4 * std::fabs(a));
  }

  Outcome other = features({"--data", "npy:data:train", "--tap", "logit", "--out", "g"});
  EXPECT_EQ(other.code, 2);
  EXPECT_NE(other.err.find("did you mean logits?"), std::string::npos) << other.err;
  other = features({"--data", "npy:data:train", "--out", "none/g"});
  EXPECT_EQ(other.code, 2);
  EXPECT_FALSE(std::filesystem::exists(folder / "g"));
  for (const char* change : {"data.train=npy:data:test", "augment.flip=true"}) {
    std::vector<std::string> arguments{"train", "config.toml", "--run", "refused"};
    for (std::string text : settings)
      arguments.insert(arguments.end(), {std::string("--set"), text});
    arguments.insert(arguments.end(), {std::string("--set"), std::string(change)});
    Outcome refused = run_program(arguments, folder);
    EXPECT_EQ(refused.code, 2) << change;
    EXPECT_NE(refused.err.find("f.safetensors"), std::string::npos) << refused.err;
    EXPECT_FALSE(std::filesystem::exists(folder / "refused"));
  }
}

// The rows of a program that was killed are kept, and the file is that of an undisturbed one.
TEST(Program, FeaturesGoOnAfterAKill) {
  TemporaryFolder folder;
  write_images(folder / "data", "train", 600, 4, 32, 3);
  nn::Store store(0);
  models::make_model("resnet20_cifar", nn::Scope(store));
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const nn::Param& p : store.params()) tensors.emplace_back(p.name, p.value);
  data::save_safetensors(folder / "net.safetensors", tensors, {{"model", "resnet20_cifar"}});
  auto arguments = [](const std::string& out, const std::string& tap) {
    return std::vector<std::string>{
        "features", "--teacher", "net.safetensors", "--data", "npy:data:train", "--batch", "4",
        "--tap",    tap,         "--out",           out};
  };
  ASSERT_EQ(run_program(arguments("whole", "features"), folder).code, 0);
  {
    Process killed(arguments("parts", "features"), folder);
    ASSERT_TRUE(killed.wait_for(folder / "parts.partial"));
    while (std::filesystem::file_size(folder / "parts.partial") < 4000) usleep(100);
    killed.send(SIGKILL);
    ASSERT_EQ(killed.wait().code, 128 + SIGKILL);
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "parts"));
  // Rows of something else are not continued.
  std::filesystem::copy_file(folder / "parts.partial", folder / "other.partial");
  Outcome other = run_program(arguments("other", "logits"), folder);
  EXPECT_EQ(other.code, 0) << other.err;
  EXPECT_EQ(other.out.find("goes on"), std::string::npos) << other.out;
  Outcome rest = run_program(arguments("parts", "features"), folder);
  EXPECT_EQ(rest.code, 0) << rest.err;
  EXPECT_NE(rest.out.find("goes on behind sample"), std::string::npos) << rest.out;
  EXPECT_EQ(read_text(folder / "parts"), read_text(folder / "whole"));
  EXPECT_FALSE(std::filesystem::exists(folder / "parts.partial"));
}

// The same for features and AFT, whose loss is computed from them.
TEST_F(Trained, StoredFeaturesAreTheTeacherOfAft) {
  train("teacher");
  Outcome stored =
      run_program({"features", "--teacher", "teacher/best.safetensors", "--data", "npy:data:train",
                   "--tap", "features", "--batch", "16", "--out", "f.safetensors"},
                  folder);
  ASSERT_EQ(stored.code, 0) << stored.err;
  std::vector<double> losses;
  for (const char* teacher :
       {"weights = \"teacher/best.safetensors\"", "features = [\"f.safetensors\"]"}) {
    write_text(folder / "config.toml", tiny_config() + "[[teacher]]\nname = \"t\"\n" + teacher +
                                           "\n[[method]]\nname = \"aft\"\n");
    std::string run = concat("run", losses.size());
    train(run);
    losses.push_back(metrics(run)[0]["train"]["parts"]["aft"]);
  }
  EXPECT_NEAR(losses[0], losses[1], 1e-5 * losses[0]);
}

TEST_F(Trained, ResolvedConfigurationReadsBackToItself) {
  train("run", {"train.lr=0.003", "student.freeze=[\"pos_embed\"]"});
  std::string text = read_text(folder / "run/config.toml");
  EXPECT_NE(text.find("lr = 0.003\n"), std::string::npos) << text;
  Config config = parse_config(text, "config.toml");
  EXPECT_EQ(to_toml(config, false), text);
  EXPECT_EQ(to_toml(parse_config(to_toml(config, true), "x"), false), text);
}

TEST_F(Trained, LearnsAndRecordsLastAndBest) {
  train("run", {"train.epochs=30"});
  std::vector<Json> lines = metrics("run");
  ASSERT_EQ(lines.size(), 31u);
  EXPECT_LT(lines[29]["train"]["loss"], lines[0]["train"]["loss"]);
  double best = 0;
  for (size_t i = 0; i < 30; i++)
    best = std::max(best, lines[i]["validation"]["top1"].get<double>());
  EXPECT_EQ(lines[29]["best"]["top1"], best);
  EXPECT_GT(best, 0.8);  // the classes are told by the brightest quarter
  EXPECT_EQ(lines[30]["test"]["last"]["top1"], lines[29]["validation"]["top1"]);  // the same data
  EXPECT_EQ(lines[30]["test"]["best"]["top1"], best);
  Json environment = Json::parse(read_text(folder / "run/environment.json"));
  EXPECT_EQ(environment["sources"]["data"]["train"]["sha256"].get<std::string>().size(), 64u);
  EXPECT_EQ(environment["threads"], 2);
}

TEST_F(Trained, SameSeedSameBytesOtherSeedOthers) {
  train("a");
  train("b");
  train("c", {"train.seed=1"});
  EXPECT_EQ(read_text(folder / "a/last.safetensors"), read_text(folder / "b/last.safetensors"));
  EXPECT_EQ(read_text(folder / "a/metrics.jsonl"), read_text(folder / "b/metrics.jsonl"));
  EXPECT_NE(read_text(folder / "a/last.safetensors"), read_text(folder / "c/last.safetensors"));
}

TEST_F(Trained, FrozenParametersStayAndTheirNamesArePublic) {
  train("first");
  train("second", {"student.weights=first/last.safetensors", "student.freeze=[\"blocks.*\"]"});
  auto before = data::open_safetensors(folder / "first/last.safetensors");
  auto after = data::open_safetensors(folder / "second/last.safetensors");
  bool moved = false;
  for (const data::TensorInfo& t : after->list()) {
    EXPECT_FALSE(t.name.starts_with("loss.") || t.name.starts_with("optimizer.")) << t.name;
    bool same =
        before->read(t.name, DType::f64).values() == after->read(t.name, DType::f64).values();
    if (t.name.starts_with("blocks."))
      EXPECT_TRUE(same) << t.name;
    else
      moved |= !same;
  }
  EXPECT_TRUE(moved);
  EXPECT_TRUE(after->has("head.weight"));
}

TEST_F(Trained, StepsAndScheduleAndNoValidation) {
  train("run", {"train.epochs=0", "train.steps=8", "data.validation=", "train.schedule=multistep",
                "train.milestones=[1]", "train.warmup=0.5", "train.optimizer=sgd",
                "train.clip_norm=1", "train.label_smoothing=0.1"});
  std::vector<Json> lines = metrics("run");
  ASSERT_EQ(lines.size(), 3u);  // 6 batches, 2 batches, the test
  EXPECT_EQ(lines[1]["step"], 8);
  EXPECT_DOUBLE_EQ(lines[0]["lr"].get<double>(), 0.001);  // of the step after epoch 1
  EXPECT_FALSE(lines[1].contains("best"));
  EXPECT_FALSE(std::filesystem::exists(folder / "run/best.safetensors"));
}

TEST_F(Trained, EvalAgreesWithTheRunAndWithItself) {
  train("run");
  double top1 = metrics("run").back()["test"]["best"]["top1"];
  Outcome eval = run_program(
      {"eval", "run", "--data", "npy:data:test", "--json", "--confusion", "confusion.csv"}, folder);
  ASSERT_EQ(eval.code, 0) << eval.err;
  Json j = Json::parse(eval.out);
  EXPECT_EQ(j["top1"], top1);
  EXPECT_EQ(j["samples"], 40);
  EXPECT_EQ(j["top5"], 1.0);  // of four classes
  std::istringstream csv(read_text(folder / "confusion.csv"));
  std::string line;
  std::getline(csv, line);
  EXPECT_EQ(line, "true\\answer,0,1,2,3");
  int sum = 0, diagonal = 0;
  for (int row = 0; row < 4; row++) {
    ASSERT_TRUE(std::getline(csv, line));
    std::istringstream cells(line);
    std::string cell;
    std::getline(cells, cell, ',');
    int of_row = 0;
    for (int column = 0; column < 4; column++) {
      ASSERT_TRUE(std::getline(cells, cell, ','));
      of_row += std::stoi(cell);
      if (row == column) {
        diagonal += std::stoi(cell);
        EXPECT_EQ(j["classes"][size_t(row)]["right"], std::stoi(cell));
      }
    }
    EXPECT_EQ(of_row, 10);
    sum += of_row;
  }
  EXPECT_EQ(sum, 40);
  EXPECT_DOUBLE_EQ(diagonal / 40.0, top1);
  Outcome named =
      run_program({"eval", "vit(dim=16,depth=1,heads=2,patch=4,image=8):run/best.safetensors",
                   "--data", "npy:data:test", "--json"},
                  folder);
  EXPECT_EQ(Json::parse(named.out)["top1"], top1) << named.err;
  Outcome state =
      run_program({"eval", "run/checkpoint.safetensors", "--data", "npy:data:test"}, folder);
  EXPECT_EQ(state.code, 2);
  EXPECT_NE(state.err.find("best.safetensors or last.safetensors"), std::string::npos) << state.err;
  EXPECT_EQ(std::count(state.err.begin(), state.err.end(), '\n'), 1) << state.err;
  for (const char* weights : {"best", "last"})
    std::filesystem::remove(folder / concat("run/", weights, ".safetensors"));
  Outcome none = run_program({"eval", "run", "--data", "npy:data:test"}, folder);
  EXPECT_EQ(none.code, 2);
  EXPECT_NE(none.err.find("neither best.safetensors nor last.safetensors"), std::string::npos)
      << none.err;
}

TEST_F(Trained, ReportGroupsSeedsAndStandsAlone) {
  std::vector<double> last;
  for (int seed = 0; seed < 3; seed++) {
    std::string run = concat("alone-", seed);
    train(run, {concat("train.seed=", seed)});
    last.push_back(metrics(run).back()["test"]["last"]["top1"]);
  }
  train("slow", {"train.lr=0.0001"});
  Outcome report =
      run_program({"report", "alone-0", "alone-1", "alone-2/", "slow", "--json"}, folder);
  ASSERT_EQ(report.code, 0) << report.err;
  Json j = Json::parse(report.out);
  ASSERT_EQ(j.size(), 2u);
  double mean = (last[0] + last[1] + last[2]) / 3, squares = 0;
  for (double v : last) squares += (v - mean) * (v - mean);
  EXPECT_EQ(j[0]["name"], "alone");
  EXPECT_NEAR(j[0]["test_last"]["mean"], mean, 1e-12);
  EXPECT_NEAR(j[0]["test_last"]["sigma"], std::sqrt(squares / 2), 1e-12);
  Outcome table =
      run_program({"report", "alone-0", "alone-1", "alone-2", "slow", "--out", "r.html"}, folder);
  EXPECT_NE(table.out.find(" ± "), std::string::npos) << table.out;
  std::string html = read_text(folder / "r.html");
  EXPECT_NE(html.find("<polyline"), std::string::npos);
  EXPECT_NE(html.find("slow"), std::string::npos);
  EXPECT_EQ(html.find("src="), std::string::npos);  // nothing is fetched
  EXPECT_EQ(html.find("href="), std::string::npos);

  // The ticks are whole epochs and round numbers: 1, 2 or 5 times a power of ten apart.
  std::map<std::string, std::vector<double>> ticks;
  std::string curves = html.substr(0, html.rfind("<h2>"));  // of the accuracy
  for (const std::string anchor : {"end", "middle"}) {
    std::string label = "text-anchor=\"" + anchor + "\">";
    for (size_t at = 0; (at = curves.find(label, at)) != std::string::npos;)
      ticks[anchor].push_back(std::stod(curves.substr(at += label.size())));
  }
  EXPECT_EQ(ticks["middle"], (std::vector<double>{1, 2, 3}));
  ASSERT_GE(ticks["end"].size(), 3u);
  double step = ticks["end"][1] - ticks["end"][0];
  double leading = step / std::pow(10, std::floor(std::log10(step * 1.001)));
  EXPECT_LT(std::min({std::fabs(leading - 1), std::fabs(leading - 2), std::fabs(leading - 5)}),
            1e-9);
  EXPECT_NEAR(std::remainder(ticks["end"][0], step), 0, 1e-9);
}

TEST_F(Trained, ReportOfAFolderLeavesOutTheTrialsOfAStudyAlone) {
  train("runs/study/kd/seed1");
  train("runs/study/kd/seed2", {"train.seed=2"});
  train("runs/study/kd/lr1", {"data.test=", "train.lr=1"});
  write_text(folder / "runs/study/study.toml", "");
  train("runs/untested", {"data.test="});
  train("runs/kd/lr1", {"data.test=", "train.lr=1"});  // the name alone does not make a trial
  Json j = Json::parse(run_program({"report", "runs", "--json"}, folder).out);
  ASSERT_EQ(j.size(), 3u);
  EXPECT_EQ(j[0]["name"], "runs/kd/lr1");
  EXPECT_EQ(j[1]["name"], "runs/study/kd");
  EXPECT_EQ(j[1]["runs"].size(), 2u);
  EXPECT_EQ(j[2]["name"], "runs/untested");
}

TEST_F(Trained, ReportNamesWhatItCannotRead) {
  train("runs/good");
  train("runs/copy");
  std::filesystem::create_directories(folder / "runs/begun");
  std::filesystem::create_directories(folder / "runs/fresh");
  std::filesystem::create_directories(folder / "runs/broken");
  std::filesystem::create_directories(folder / "runs/transmiter");
  for (const char* run : {"begun", "fresh", "broken"})
    write_text(folder / concat("runs/", run, "/config.toml"), tiny_config());
  write_text(folder / "runs/begun/environment.json", "{}");
  write_text(folder / "runs/begun/metrics.jsonl", "");
  write_text(folder / "runs/broken/metrics.jsonl", "{\"epoch\": \"one\"}\n");
  write_text(folder / "runs/transmiter/config.toml", "[classes]\nnames = \"names.txt\"\n");
  write_text(folder / "runs/notes.txt", "");
  std::vector<std::string> lines = {
      "runs/begun: no epoch finished yet", "runs/fresh: no epoch finished yet",
      "runs/broken: environment.json, metrics.jsonl or timing.jsonl is damaged",
      "runs/transmiter: a run of pupil transmiter, see its table.txt"};
  auto reported = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"report", "--json"});
    Outcome outcome = run_program(arguments, folder);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(size_t(std::count(outcome.err.begin(), outcome.err.end(), '\n')), lines.size());
    for (const std::string& line : lines)
      EXPECT_NE(outcome.err.find("pupil: warning: skipped " + line), std::string::npos)
          << outcome.err;
    Json j = Json::parse(outcome.out);
    ASSERT_EQ(j.size(), 1u);
    EXPECT_EQ(j[0]["runs"].size(), 1u);  // seeds that differ, not folders
  };
  // The first of two copies of a seed counts.
  lines.push_back("runs/good: the same training with the same seed as runs/copy");
  reported({"runs"});
  lines.back() = "runs/copy: the same training with the same seed as runs/good";
  lines.push_back("runs/notes.txt: Not a directory");
  reported({"runs/good", "runs/copy", "runs/begun", "runs/fresh", "runs/broken", "runs/transmiter",
            "runs/notes.txt"});

  Outcome nothing = run_program({"report", "runs/fresh", "runs/transmiter"}, folder);
  EXPECT_EQ(nothing.code, 2);
  EXPECT_EQ(nothing.out, "");
  EXPECT_NE(nothing.err.find(lines[1] + "; " + lines[3] + "\n"), std::string::npos) << nothing.err;
}

}  // namespace
}  // namespace pupil::test
