// pupil predict: names, folders, tables, images that cannot be read. pupil convert on the way.
#include <nlohmann/json.hpp>

#include "data/convert.h"
#include "models/models.h"
#include "tests/data_files.h"
#include "tests/program.h"

namespace pupil {
namespace {

using nlohmann::json;
using test::run;
using Answer = test::Outcome;

// A network of three classes whose answer is always the second, and a folder of images.
struct Scene {
  test::TemporaryFolder folder;
  std::string weights = folder / "net.safetensors", photos = folder / "photos";

  explicit Scene(const std::string& model, const std::string& labels = "") {
    std::map<std::string, std::string> metadata;
    if (!model.empty()) metadata["model"] = model;
    if (!labels.empty()) metadata["labels"] = labels;
    nn::Store store(0);
    models::make_model("resnet8_kd", nn::Scope(store), {.classes = 3});
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const nn::Param& p : store.params()) {
      Tensor value = p.value.clone();
      if (p.name == "fc.weight") value = zeros(value.shape());
      if (p.name == "fc.bias")
        value = from(std::vector<double>{0, std::log(2), 0}, {3}, DType::f32);
      tensors.emplace_back(p.name, value);
    }
    data::save_safetensors(weights, tensors, metadata);
    std::filesystem::create_directories(photos + "/inner");
    test::write_bytes(photos + "/b.png", test::png(test::noise_image(40, 33, 3, 1)));
    test::write_bytes(photos + "/inner/a.PNG", test::png(test::noise_image(9, 20, 1, 2)));
    test::write_bytes(photos + "/notes.txt", {'x'});
  }
};

TEST(Predict, NamesAndProbabilitiesOfAFolder) {
  Scene scene("resnet8_kd", "cat\nsea horse, grey\ndog");
  Answer text = run({"predict", "--weights", scene.weights, scene.photos, "--top", "2"});
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_NE(text.out.find("50.00 %  sea horse, grey"), std::string::npos) << text.out;
  EXPECT_EQ(text.out.find("dog"), std::string::npos);
  json list = json::parse(run({"predict", "--weights", scene.weights, scene.photos, "--json"}).out);
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0]["file"], scene.photos + "/b.png");
  EXPECT_EQ(list[1]["file"], scene.photos + "/inner/a.PNG");
  EXPECT_EQ(list[1]["top"][0]["class"], 1);
  EXPECT_NEAR(list[1]["top"][0]["probability"], 0.5, 1e-6);
  EXPECT_EQ(list[1]["top"][1]["name"], "cat");  // of equal ones the first
  EXPECT_EQ(list[1]["top"].size(), 3u);

  std::string table = scene.folder / "t.csv";
  EXPECT_EQ(run({"predict", "--weights", scene.weights, scene.photos, "--csv", table}).code, 0);
  test::Bytes bytes = test::read_bytes(table);
  std::string csv(bytes.begin(), bytes.end());
  EXPECT_EQ(csv.find("file,top1,probability1,top2,probability2,top3,probability3\n"), 0u) << csv;
  EXPECT_NE(csv.find("b.png,\"sea horse, grey\",0.5,cat,0.25,dog,0.25\n"), std::string::npos)
      << csv;
}

TEST(Predict, ANetworkIsKnownByTheNamesAndShapesOfItsTensors) {
  Scene scene("");
  Answer named =
      run({"predict", "--weights", scene.weights, scene.photos, "--model", "resnet8_kd"});
  Answer known = run({"predict", "--weights", scene.weights, scene.photos});
  EXPECT_EQ(known.code, 0) << known.err;
  EXPECT_EQ(known.out, named.out);
  EXPECT_EQ(json::parse(run({"inspect", scene.weights, "--json"}).out)["network"], "resnet8_kd");
}

TEST(Predict, TheRestGoesOnWithoutBadImages) {
  Scene scene("");
  test::write_bytes(scene.photos + "/broken.jpg", {0xff, 0xd8, 0xff, 0xe0});
  std::vector<std::string> arguments{"predict",
                                     "--model",
                                     "resnet8_kd",
                                     "--weights",
                                     scene.weights,
                                     scene.photos,
                                     scene.folder / "none.png"};
  Answer text = run(arguments);
  EXPECT_EQ(text.code, 2);
  EXPECT_NE(text.out.find("50.00 %  1\n"), std::string::npos) << text.out;  // numbers: no names
  EXPECT_NE(text.err.find("broken.jpg"), std::string::npos) << text.err;
  EXPECT_NE(text.err.find("none.png"), std::string::npos) << text.err;
  EXPECT_NE(text.err.find("2 images of 4 could not be read"), std::string::npos) << text.err;
  arguments.push_back("--json");
  json list = json::parse(run(arguments).out);
  ASSERT_EQ(list.size(), 4u);
  EXPECT_TRUE(list[1].contains("error"));
  EXPECT_EQ(list[0]["top"][0]["name"], "1");
}

TEST(Predict, LabelsFromAFileAndFromHuggingFace) {
  Scene scene("resnet8_kd");
  std::string image = scene.photos + "/b.png", labels = scene.folder / "labels.txt";
  std::ofstream(labels) << "n01440764 tench\r\nn01443537 goldfish\nnot a number\n\n";
  Answer named = run({"predict", "--weights", scene.weights, image, "--labels", labels});
  EXPECT_NE(named.out.find("50.00 %  goldfish\n"), std::string::npos) << named.out << named.err;
  std::ofstream(labels) << "one\ntwo\n";
  Answer few = run({"predict", "--weights", scene.weights, image, "--labels", labels});
  EXPECT_EQ(few.code, 2);
  EXPECT_NE(few.err.find("2 names, the network 3 classes"), std::string::npos) << few.err;

  std::string folder = scene.folder / "hf";
  EXPECT_EQ(run({"convert", scene.weights, folder}).code, 0);
  std::ofstream(folder + "/config.json") << R"({"id2label": {"0": "a", "1": "beta", "2": "c"}})";
  Answer stored = run({"predict", "--model", "resnet8_kd", "--weights", folder, image});
  EXPECT_NE(stored.out.find("50.00 %  beta\n"), std::string::npos) << stored.out << stored.err;
}

TEST(Predict, WhatItCannotDo) {
  Scene scene("resnet8_kd");
  std::filesystem::create_directory(scene.folder / "empty");
  for (const std::vector<std::string>& wrong :
       {std::vector<std::string>{"predict", "--weights", scene.weights},
        {"predict", "--weights", scene.folder / "none", scene.photos},
        {"predict", "--weights", scene.weights, scene.folder / "empty"},
        {"predict", "--weights", scene.weights, scene.photos, "--top", "0"},
        {"predict", "--weights", scene.weights, scene.photos, "--model", "resnet7"},
        {"convert", scene.weights, scene.folder / "a.npz", "--dtype", "f8"},
        {"convert", scene.folder / "none", scene.folder / "a.npz"},
        {"convert", scene.weights, scene.folder / "no/such/a.npz"}}) {
    Answer refused = run(wrong);
    EXPECT_EQ(refused.code, 2) << wrong.back();
    EXPECT_EQ(refused.out, "");
    EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
  }
}

TEST(Convert, SaysWhatItCopied) {
  Scene scene("resnet8_kd");
  Answer done = run({"convert", scene.weights, scene.folder / "a.npz", "--dtype", "f16"});
  EXPECT_EQ(done.code, 0) << done.err;
  EXPECT_NE(done.out.find("tensors of"), std::string::npos) << done.out;
  auto weights = data::open_weights(scene.folder / "a.npz");
  EXPECT_EQ(weights->list().size(), data::open_weights(scene.weights)->list().size());
  for (const data::TensorInfo& t : weights->list())
    EXPECT_TRUE(t.dtype == "F16" || t.dtype == "I64") << t.name << " " << t.dtype;
}

}  // namespace
}  // namespace pupil
