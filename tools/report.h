// pupil report: what finished and running runs have reached, as a table and as curves in HTML.
#pragma once
#include <vector>

namespace CLI {
class App;
}

namespace pupil {

double mean(const std::vector<double>&);
double deviation(const std::vector<double>&);  // of the sample, n - 1; 0 for one value

void add_report_command(CLI::App&);

}  // namespace pupil
