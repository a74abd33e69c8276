"""What chapter 5 trains and tests on."""
