// What Python calls: C linkage, visible, no exceptions across it.
#pragma once

#define TANDEM_API extern "C" __attribute__((visibility("default")))
