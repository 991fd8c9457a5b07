// What a distilled student is worth: agreement, accuracy, size, time, and where it is wrong.
#pragma once
#include "network.h"

namespace pupil {

struct StudentRow {
  std::string name;                // of the network
  std::string run, weights, onnx;  // folder of its run, files
  int64_t parameters = 0, weights_bytes = 0, onnx_bytes = 0;
  int64_t epochs = 0;
  bool finished = true;                       // false: the time was over
  double agreement = 0, first_agreement = 0;  // shares of the held-out photos; after epoch 1
  std::optional<double> accuracy;             // on those whose folder is called like a class
  double milliseconds = 0;                    // of one photo, median
};

struct DistillReport {
  std::string teacher, images;       // as given
  std::vector<std::string> classes;  // names; empty: there are none
  std::string teacher_logits;        // file of view 0
  int64_t teacher_parameters = 0, teacher_bytes = 0;
  double teacher_milliseconds = 0;
  int64_t views = 0, photos = 0, trained_on = 0, labelled = 0;
  std::optional<double> teacher_accuracy;
  std::vector<StudentRow> students;
};

// The class that a folder of the path below `root` is called like, the innermost first; -1: none.
// Case and the characters between words do not count; of "tabby, tabby cat" each is a name.
int64_t class_of_path(const std::string& path, const std::string& root,
                      const std::vector<std::string>& classes);
// The position of `name` among the classes by the same rules, or -1.
int64_t class_named(const std::string& name, const std::vector<std::string>& classes);

// One forward pass of one photo: the median of some after a few to warm up.
double milliseconds_of(const models::Model&);

// Measures the student on the held-out photos, writes their list into row.run/held_out.csv and
// answers with the part of the page that shows the photos on which it and the teacher differ most.
std::string measure(const Network& student, StudentRow&, DistillReport&,
                    const data::Dataset& held_out);

std::string table_of(const DistillReport&);  // for the terminal
std::string json_of(const DistillReport&);
std::string page_of(const DistillReport&, const std::string& disagreements);  // HTML

}  // namespace pupil
