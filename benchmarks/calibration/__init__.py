"""Do intervals, prediction sets, flags and the monitor keep their word, and at what width beside conformal peers?"""
