#include "diff.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/file.h"
#include "../data/weights.h"

namespace pupil {
namespace {

struct DiffArguments {
  std::string a, b;
  double tolerance = 0, absolute = 0;
  bool all = false, json = false;
};

struct Row {
  std::string name, problem;       // problem: why there are no numbers
  double error = 0, relative = 0;  // largest difference, and its share of the largest value in A
  bool equal = true;
};

// Values that are not finite agree only with themselves.
Row compare(const std::string& name, const Tensor& a, const Tensor& b,
            const DiffArguments& arguments) {
  std::vector<double> x = a.values(), y = b.values();
  Row row{name, "", 0, 0, true};
  double largest = 0;
  for (double v : x)
    if (std::isfinite(v)) largest = std::max(largest, std::fabs(v));
  for (size_t i = 0; i < x.size(); i++) {
    if (x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i]))) continue;
    double difference = std::fabs(x[i] - y[i]);
    row.error = std::isnan(difference) ? INFINITY : std::max(row.error, difference);
  }
  row.relative = row.error == 0 ? 0 : row.error / largest;
  row.equal = row.error <= arguments.absolute + arguments.tolerance * largest;
  return row;
}

// In the order of A, which is that of the forward pass in a trace; then what only B has.
std::vector<Row> compare_files(const data::Weights& a, const data::Weights& b,
                               const DiffArguments& arguments) {
  std::map<std::string, Shape> in_b;
  for (const data::TensorInfo& info : b.list()) in_b[info.name] = info.shape;
  std::vector<Row> rows;
  for (const data::TensorInfo& info : a.list()) {
    auto other = in_b.find(info.name);
    if (other == in_b.end()) {
      rows.push_back({info.name, "only in " + a.path(), 0, 0, false});
    } else if (other->second != info.shape) {
      rows.push_back(
          {info.name, concat("shape ", info.shape, " and ", other->second), 0, 0, false});
    } else {
      rows.push_back(compare(info.name, a.read(info.name, DType::f64),
                             b.read(info.name, DType::f64), arguments));
    }
    in_b.erase(info.name);
  }
  for (const data::TensorInfo& info : b.list())
    if (in_b.count(info.name)) rows.push_back({info.name, "only in " + b.path(), 0, 0, false});
  return rows;
}

void diff(const DiffArguments& arguments) {
  auto a = data::open_weights(arguments.a), b = data::open_weights(arguments.b);
  std::vector<Row> rows = compare_files(*a, *b, arguments);
  auto differs = [](const Row& r) { return !r.equal; };
  auto count = std::count_if(rows.begin(), rows.end(), differs);
  auto first = std::find_if(rows.begin(), rows.end(), differs);
  if (arguments.json) {
    nlohmann::ordered_json j{{"tensors", rows.size()}, {"different", count}};
    j["first"] = nullptr;
    if (count) j["first"] = first->name;
    j["rows"] = nlohmann::ordered_json::array();
    for (const Row& r : rows) {
      nlohmann::ordered_json row{{"name", r.name}, {"equal", r.equal}};
      if (!r.problem.empty()) row["problem"] = r.problem;
      if (r.problem.empty()) row.update({{"absolute", r.error}, {"relative", r.relative}});
      j["rows"].push_back(row);
    }
    std::cout << j.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  } else {
    for (const Row& r : rows) {
      if (r.equal && !arguments.all) continue;
      std::cout << (r.equal ? "equal      " : "different  ") << data::printable(r.name) << "  ";
      if (r.problem.empty())
        std::cout << "largest difference " << r.error << ", relative " << r.relative << "\n";
      else
        std::cout << r.problem << "\n";
    }
    std::cout << rows.size() - size_t(count) << " equal, " << count << " different\n";
  }
  if (count)
    throw Error(concat("diff: ", count, " of ", rows.size(), " tensors differ; the first is ",
                       data::printable(first->name)));
}

}  // namespace

void add_diff_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("diff", "compare two files of named tensors");
  command->footer(
      "A tensor is equal when its largest difference is at most ABSOLUTE + TOLERANCE * its "
      "largest\n"
      "value in A. Exit code 0: all are equal, 1: some differ, 2: a file cannot be read.\n"
      "Example:\n  pupil diff runs/a/trace-1.safetensors runs/b/trace-1.safetensors");
  auto a = std::make_shared<DiffArguments>();
  command->add_option("A", a->a, "safetensors or PyTorch file; its order decides which is first")
      ->required();
  command->add_option("B", a->b, "the other file")->required();
  command->add_option("--tolerance", a->tolerance, "relative to the largest value of a tensor")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--absolute", a->absolute, "added to it")->check(CLI::NonNegativeNumber);
  command->add_flag("--all", a->all, "list the equal tensors too");
  command->add_flag("--json", a->json, "for machines");
  command->callback([a] { diff(*a); });
}

}  // namespace pupil
