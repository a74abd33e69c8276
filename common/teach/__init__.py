"""For teachers: Gradescope's autograder, a leaderboard of the open-ended exercises, and slides made of the lessons."""
