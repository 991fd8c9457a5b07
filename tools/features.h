// pupil features: what a teacher says of every sample, computed once into one file.
#pragma once

namespace CLI {
class App;
}

namespace pupil {
void add_features_command(CLI::App&);
}
