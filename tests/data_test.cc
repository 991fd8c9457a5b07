#include "data/data.h"

#include <numeric>
#include <set>

#include "support.h"

namespace pupil::data {
namespace {

std::string real(const std::string& below) { return test::shared_folder() + "/data/" + below; }

std::vector<int64_t> count_classes(const Dataset& set) {
  std::vector<int64_t> counts(size_t(set.classes));
  for (int64_t label : set.labels) counts[size_t(label)]++;
  return counts;
}

TEST(Datasets, RealFilesHaveTheDocumentedCounts) {
  PUPIL_NEEDS_SHARED();
  struct Case {
    const char* spec;
    int64_t samples, classes, per_class;
    int side, channels;
  };
  for (const Case& c : {Case{"cifar10:cifar10:train", 15000, 10, 1500, 32, 3},
                        Case{"cifar10:cifar10:test", 10000, 10, 1000, 32, 3},
                        Case{"cifar100:cifar100:train", 6000, 100, 60, 32, 3},
                        Case{"cifar100:cifar100:test", 2000, 100, 20, 32, 3},
                        Case{"mnist:mnist:train", 6000, 10, 600, 28, 1},
                        Case{"mnist:mnist:test", 2000, 10, 200, 28, 1}}) {
    SCOPED_TRACE(c.spec);
    std::string spec = c.spec;
    spec.insert(spec.find(':') + 1, real(""));
    Dataset set = open_dataset(spec);
    EXPECT_EQ(set.size(), c.samples);
    EXPECT_EQ(set.classes, c.classes);
    EXPECT_EQ(set.class_names.size(), size_t(c.classes));
    EXPECT_EQ(set.hash.size(), 64u);
    EXPECT_EQ(count_classes(set), std::vector<int64_t>(size_t(c.classes), c.per_class));
    Image image;
    set.image(c.samples - 1, image);
    EXPECT_EQ(image.height, c.side);
    EXPECT_EQ(image.width, c.side);
    EXPECT_EQ(image.channels, c.channels);
    EXPECT_EQ(image.pixels.size(), size_t(c.side * c.side * c.channels));
  }
}

TEST(Loader, GivesEverySampleOnce) {
  PUPIL_NEEDS_SHARED();
  Dataset set = open_dataset("mnist:" + real("mnist") + ":test[333]");
  models::Preprocessing input;
  input.size = 28;
  for (int workers : {0, 1, 3}) {
    LoaderOptions options;
    options.batch = 50;
    options.shuffle = true;
    options.workers = workers;
    Loader loader(set, {input}, options);
    EXPECT_EQ(loader.batches(), 7);
    std::multiset<double> seen;
    Batch batch;
    int64_t total = 0;
    while (loader.next(batch)) {
      EXPECT_EQ(batch.x[0].shape(), (Shape{batch.labels.dim(0), 3, 28, 28}));
      total += batch.labels.dim(0);
      for (double row : batch.index.values()) seen.insert(row);
    }
    EXPECT_EQ(total, 333);
    EXPECT_EQ(seen, std::multiset<double>(set.rows.begin(), set.rows.end()));
  }
}

}  // namespace
}  // namespace pupil::data
