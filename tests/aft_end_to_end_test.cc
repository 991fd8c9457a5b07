// AFT trained on stored features of real images, against PyTorch's accuracy on the same experiment.
#include <filesystem>

#include "program.h"
#include "tools/eval.h"
#include "tools/program.h"
#include "tools/train.h"

namespace pupil {
namespace {

// The experiment of the specification's section 16: a perceptron on ViT-Tiny features of 100
// Caltech classes, teacher CLIP ViT-B/32. Its five PyTorch seeds (stl 93.09, aft 94.30) lie at the
// edge of what seeds do: thirty others give stl 93.56 with deviation 0.46 and aft 94.20 with 0.52,
// a gain of 0.63 with standard error 0.13. The bands are three standard errors of ten seeds against
// those thirty.
TEST(AftEndToEnd, StoredFeaturesAsInPyTorch) {
  PUPIL_NEEDS_SHARED();
  std::string in =
      std::filesystem::canonical(test::shared_folder()).string() + "/data/clip/caltech101/";
  std::string train = concat("npy:", in, "few16_vit_tiny_in1k.npy+", in, "few16_labels.npy");
  test::TemporaryFolder folder;
  auto stored = test::run_program({"features", "--from", in + "few16_vitb32.npy", "--data", train,
                                   "--tap", "features", "--out", "vitb32.safetensors"},
                                  folder);
  ASSERT_EQ(stored.code, 0) << stored.err;

  use_threads(1);  // small matrices
  Config config;
  config.data.train = train;
  config.data.test = concat("npy:", in, "val_dev_vit_tiny_in1k.npy+", in, "val_dev_labels.npy");
  config.student.model = "mlp(inputs=192,hidden=256x256,standardize=1)";
  config.train.epochs = 40;
  config.train.optimizer = "adam";
  config.train.lr = 1e-3;
  config.train.weight_decay = 0;
  config.train.schedule_per = "epoch";
  const int seeds = 10;
  auto accuracy = [&] {
    double sum = 0;
    for (config.train.seed = 0; config.train.seed < seeds; config.train.seed++) {
      Trainer trainer(config);
      while (trainer.position().step < trainer.total_steps()) {
        trainer.step();
        if (trainer.epoch_done()) trainer.next_epoch();
      }
      sum += 100 * evaluate(trainer.model(), *trainer.test_data(), 128, 0).top1;
    }
    return sum / seeds;
  };
  double alone = accuracy();
  TeacherConfig teacher;
  teacher.name = "vitb32";
  teacher.features = {folder / "vitb32.safetensors"};
  config.teachers = {teacher};
  config.methods = {{"aft", {}, {{"beta", 10.0}}}};
  double aft = accuracy();
  std::cout << "stl " << alone << " %, aft " << aft << " %\n";
  EXPECT_NEAR(alone, 93.56, 0.5);
  EXPECT_NEAR(aft, 94.20, 0.57);
  EXPECT_GT(aft, alone);
}

}  // namespace
}  // namespace pupil
