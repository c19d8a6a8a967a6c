-- The table of the example function `orders`. Safe to run again.
create table if not exists orders (
    id   serial primary key,
    item text not null
);
