// Several arms of one experiment, from one file: each [[arm]] is merged over the rest of the
// configuration, chooses its learning rate on the validation samples and is trained once per seed.
#pragma once
#include "train.h"

namespace pupil {

// The study's folder keeps its configuration under this name, every arm's filled in.
inline constexpr const char* kStudyConfig = "study.toml";

// Runs every arm that is not finished yet into options.folder/ARM/seedN, choices of the learning
// rate into options.folder/ARM/lrX. The choices never see the test set. With options.resume,
// finished runs stay and the one that was stopped goes on. Throws Interrupted as run() does.
void run_study(const Study&, RunOptions options);

}  // namespace pupil
